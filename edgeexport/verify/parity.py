"""Parity: how near a lane's answers are to the original's, on texts without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeexport.artifact import Task
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Check, Verdict, at_least, at_most
from edgeexport.verify.expectations import expectation_checks
from edgeexport.verify.intervals import Estimate, bootstrap, enough, proportion, quantile, unseen, weighted_mean
from edgeexport.verify.margins import bound_for

# Of a logit, in units of their spread: a thousand times what makes another model of it.
LARGEST_ERROR = 1000.0


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
    checks = same_tokens(dataset, reference, lane, how)
    if task is Task.TEXT_GENERATION:
        return [*checks, *expectation_checks(dataset, reference, lane, given, how), *finite_checks(dataset, reference, lane, how)]
    figures: dict[str, tuple[str, Callable[[], Estimate | None]]] = {
        "cosine_p5": ("cosine, 5th percentile", lambda: _quantile(cosines(reference, lane), 0.05, -1.0, 1.0)),
        "agreement": ("same answer", lambda: agreement(task, reference, lane)),
        "logit_error_p95": ("logit error, 95th percentile", lambda: _quantile(logit_errors(reference, lane), 0.95, 0.0, LARGEST_ERROR)),
    }
    for name, (title, compute) in figures.items():
        bound = bound_for(name, task, given)
        if bound is None:
            continue
        estimate = compute()
        if estimate is None:
            if name == "agreement":  # of a regression there is none
                continue
            checks.append(Check(name=f"{title} ({dataset})", group="parity", verdict=Verdict.INCONCLUSIVE, bound=bound, how=how,
                                note="the model could answer no text at its length"))
            continue
        at_bound = at_most if name == "logit_error_p95" else at_least
        needed = enough(1 - bound) if name == "agreement" and 0 < bound < 1 else enough(0.05)
        few = estimate.n < needed
        checks.append(Check(name=f"{title} ({dataset})", group="parity", verdict=at_bound(estimate, bound), figure=estimate, bound=bound,
                            relation="<=" if at_bound is at_most else ">=", how=how,
                            unit="x spread of the logits" if name == "logit_error_p95" else "",
                            note=f"{estimate.n} are too few to prove it, even without any difference; {needed} can" if few else None))
    return checks + finite_checks(dataset, reference, lane, how)


def _quantile(values: np.ndarray, q: float, least: float, most: float) -> Estimate | None:
    return quantile(values, q, least, most) if len(values) else None


def same_tokens(dataset: str, reference: Answers, lane: Answers, how: str) -> list[Check]:
    """A failed check where the lane's tokenizer makes other tokens of a text than the original's; nothing where all are the same."""
    other = [number for number, (a, b, count, same) in enumerate(zip(reference.ids, lane.ids, reference.tokens, lane.tokens, strict=True), 1)
             if len(a) and len(b) and not np.array_equal(a[:count], b[:same])]
    if not other:
        return []
    return [Check(name=f"texts cut into other tokens ({dataset})", group="parity", verdict=Verdict.FAIL, figure=float(len(other)), bound=0.0,
                  relation="<=", unit="texts", how=how, note=f"than by the original's tokenizer in Transformers; the first is number {other[0]}")]


def finite_checks(dataset: str, reference: Answers, lane: Answers, how: str) -> list[Check]:
    """A failed check where answers hold NaN or infinity, which no other figure may hide; nothing where all are numbers."""
    found = []
    for whose, answers in (("the original", reference), ("the lane", lane)):
        bad = sum(not np.isfinite(rows).all() for rows in answers.numbers)
        if bad:
            found.append(Check(name=f"finite numbers ({dataset})", group="parity", verdict=Verdict.FAIL, figure=float(bad), bound=0.0,
                               relation="<=", unit="texts", how=how, note=f"{whose} answers NaN or infinity"))
    return found


@np.errstate(all="ignore")  # what is no number is dealt with, not warned of
def cosines(reference: Answers, lane: Answers) -> np.ndarray:
    """Cosine between the vectors of each text, float64 [n]; for vectors per token, the mean over the tokens; -1 where it is no number."""
    found = []
    for a, b in zip(reference.numbers, lane.numbers, strict=True):
        if a.shape != b.shape:
            found.append(0.0)  # another number of tokens: nothing to compare
            continue
        dots = np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64))
        lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
        found.append(float(np.mean(dots / np.maximum(lengths, 1e-30))))
    cosine = np.array(found)
    return np.where(np.isfinite(cosine), cosine, -1.0)


def agreement(task: Task, reference: Answers, lane: Answers) -> Estimate | None:
    """Share of equal decisions; for token classification over words, with texts as clusters. None where the task decides nothing.

    A text on which neither decides, such as one whose mask was cut off, does not count.
    """
    pairs = [(a, b) for a, b in zip(reference.decisions, lane.decisions, strict=True) if a or b]
    if not pairs:
        return None
    if task is Task.TOKEN_CLASSIFICATION:
        equal, texts = [], []
        for text, (a, b) in enumerate(pairs):
            same = [x == y for x, y in zip(a, b, strict=True)] if len(a) == len(b) else [False] * max(len(a), 1)
            equal += same
            texts += [text] * len(same)
        found = bootstrap([weighted_mean(np.array(equal))], texts)[0]
        return found.model_copy(update={"low": min(found.low, 1 - unseen(~np.array(equal), texts))})
    return proportion(sum(a == b for a, b in pairs), len(pairs))


@np.errstate(all="ignore")
def logit_errors(reference: Answers, lane: Answers) -> np.ndarray:
    """Largest difference of a logit of each text, in standard deviations of all the reference's logits: float64 [n].

    At most `LARGEST_ERROR`, which also stands for logits that can't be compared. A text without any, such as one whose mask was cut off,
    does not count.
    """
    logits = np.concatenate([rows.ravel() for rows in reference.numbers])
    spread = (float(np.std(logits)) if logits.size else 0.0) or 1.0
    found = []
    for a, b in zip(reference.numbers, lane.numbers, strict=True):
        if a.shape != b.shape:
            found.append(LARGEST_ERROR)
        elif a.size:
            found.append(float(np.abs(a - b).max()) / spread)
    errors = np.array(found)
    return np.where(errors < LARGEST_ERROR, errors, LARGEST_ERROR)  # so asked, NaN is the largest too


@np.errstate(all="ignore")
def largest_difference(reference: Answers, lane: Answers) -> float | None:
    """Largest absolute difference of any number; None where some are no numbers."""
    found = [float(np.abs(a - b).max()) for a, b in zip(reference.numbers, lane.numbers, strict=True) if a.shape == b.shape and a.size]
    return max(found, default=0.0) if np.isfinite(found).all() else None
