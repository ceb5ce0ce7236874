"""Parity: how near a lane's answers are to the original's, on texts without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeexport.artifact import Model, Task
from edgeexport.errors import UnknownName
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Check, at_least, at_most
from edgeexport.verify.intervals import Estimate, bootstrap, proportion, quantile, weighted_mean


class Margin(Model):
    """A default bound, and why it is where it is."""

    bound: float
    reason: str


VECTOR_TASKS = (Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY)
_LOGITS = Margin(bound=0.5, reason="half of the logits' own spread: beyond it the lane is another model, whatever its answers on easy texts")

# The table of default margins. A recipe's [parity] may set others, by the same names.
MARGINS: dict[str, dict[Task, Margin]] = {
    "cosine_p5": {
        task: Margin(bound=0.97, reason="an error of this angle moves a similarity score by about 0.25/sqrt(width), 0.012 at width 384: "
                     "less than what lies between neighbours that people tell apart")
        for task in VECTOR_TASKS
    },
    "agreement": {
        Task.TEXT_CLASSIFICATION: Margin(bound=0.95, reason="probes are out of any domain, so that many lie near a class boundary; a label "
                                         "that changes for 1 in 20 of them changes far more rarely in use"),
        Task.TOKEN_CLASSIFICATION: Margin(bound=0.97, reason="most words are in no entity, so that an equal share means more changed entities"),
        Task.QUESTION_ANSWERING: Margin(bound=0.85, reason="the whole span must be the same to the token, and spans often have near-equal rivals"),
        Task.FILL_MASK: Margin(bound=0.85, reason="the first of a whole vocabulary must be the same, and synonyms often are near-equal"),
    },
    "logit_error_p95": dict.fromkeys(
        (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING, Task.FILL_MASK), _LOGITS),
}


def bound_for(name: str, task: Task, given: Mapping[str, float]) -> float | None:
    """The recipe's bound, else the default one; None where the figure is not one of the task's."""
    if task not in MARGINS[name]:
        return None
    return given.get(name, MARGINS[name][task].bound)


def check_names(given: Mapping[str, float]) -> None:
    """Check the names of a recipe's margins.

    Raises:
        UnknownName: a name that is not a figure of parity.
    """
    for name in given:
        if name not in MARGINS:
            raise UnknownName.among("figure of parity", name, MARGINS)


def parity_checks(task: Task, dataset: str, reference: Answers, lane: Answers, given: Mapping[str, float], how: str) -> list[Check]:
    """The parity of a lane on a data set.

    Args:
        task: decides which figures count.
        dataset: the data set's name, for the checks' names.
        reference: the original's answers.
        lane: the lane's, row by row.
        given: bounds that the recipe sets.
        how: where the lane was measured.
    """
    figures: dict[str, tuple[str, Callable[[], Estimate | None]]] = {
        "cosine_p5": ("cosine, 5th percentile", lambda: quantile(cosines(reference, lane), 0.05)),
        "agreement": ("same answer", lambda: agreement(task, reference, lane)),
        "logit_error_p95": ("logit error, 95th percentile", lambda: quantile(logit_errors(reference, lane), 0.95)),
    }
    checks = []
    for name, (title, compute) in figures.items():
        bound = bound_for(name, task, given)
        if bound is None:
            continue
        estimate = compute()
        if estimate is None:
            continue
        at_bound = at_most if name == "logit_error_p95" else at_least
        checks.append(Check(name=f"{title} ({dataset})", group="parity", verdict=at_bound(estimate, bound), figure=estimate, bound=bound,
                            relation="<=" if at_bound is at_most else ">=", how=how,
                            unit="x spread of the logits" if name == "logit_error_p95" else ""))
    return checks


def cosines(reference: Answers, lane: Answers) -> np.ndarray:
    """Cosine between the vectors of each text, float64 [n]; for vectors per token, the mean over the tokens."""
    found = []
    for a, b in zip(reference.numbers, lane.numbers, strict=True):
        if a.shape != b.shape:
            found.append(0.0)  # another number of tokens: nothing to compare
            continue
        dots = np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64))
        lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
        found.append(float(np.mean(dots / np.maximum(lengths, 1e-30))))
    return np.array(found)


def agreement(task: Task, reference: Answers, lane: Answers) -> Estimate | None:
    """Share of equal decisions; for token classification over words, with texts as clusters. None where the task decides nothing."""
    pairs = list(zip(reference.decisions, lane.decisions, strict=True))
    if not any(a for a, _ in pairs):
        return None
    if task is Task.TOKEN_CLASSIFICATION:
        equal, texts = [], []
        for text, (a, b) in enumerate(pairs):
            same = [x == y for x, y in zip(a, b, strict=True)] if len(a) == len(b) else [False] * max(len(a), 1)
            equal += same
            texts += [text] * len(same)
        return bootstrap([weighted_mean(np.array(equal))], texts)[0]
    return proportion(sum(a == b for a, b in pairs), len(pairs))


def logit_errors(reference: Answers, lane: Answers) -> np.ndarray:
    """Largest difference of a logit of each text, in standard deviations of all the reference's logits: float64 [n]."""
    spread = float(np.std(np.concatenate([rows.ravel() for rows in reference.numbers]))) or 1.0
    return np.array([float(np.abs(a - b).max()) / spread if a.shape == b.shape and a.size else float(a.shape != b.shape) * np.inf
                     for a, b in zip(reference.numbers, lane.numbers, strict=True)])


def largest_difference(reference: Answers, lane: Answers) -> float:
    """Largest absolute difference of any number."""
    return max((float(np.abs(a - b).max()) for a, b in zip(reference.numbers, lane.numbers, strict=True) if a.shape == b.shape and a.size),
               default=0.0)
