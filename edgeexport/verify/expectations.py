"""Parity of language models: how near what a lane expects, token by token, is to what the original does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeexport.artifact import Task
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Check, Verdict, at_least, at_most, why_unproven
from edgeexport.verify.intervals import Estimate, bootstrap, enough, proportion, unseen, weighted_mean
from edgeexport.verify.margins import bound_for

# In nats, between the original's own first token and the lane's: nearer, they are as good as equal. 0.5 is a probability of 1.65 times the other.
NEAR_TIE = 0.5
# Stands for the logarithm of a probability that is no number.
IMPOSSIBLE = -100.0
# Of the probability that is left beside the tokens that both hold for likely.
LEAST_REST = 1e-6


def is_continued(answers: Answers, row: int) -> bool:
    """Whether a row is a prompt that was gone on with."""
    return len(answers.ids[row]) > answers.tokens[row]


def same_prompt(reference: Answers, lane: Answers, row: int) -> bool:
    """Whether both were given the same tokens of a row."""
    count = reference.tokens[row]
    return count == lane.tokens[row] and np.array_equal(reference.ids[row][:count], lane.ids[row][:count])


def aligned(reference: Answers, lane: Answers) -> tuple[Answers, Answers]:
    """Both, with the positions left out that can't be compared: of continuations those behind the first token that differs.

    A row of which the two read other tokens has no position that can.
    """
    rows: list[int] = []
    for row, (a, b) in enumerate(zip(reference.ids, lane.ids, strict=True)):
        count = reference.tokens[row]
        kept = min(len(reference.numbers[row]), len(lane.numbers[row]))
        if not same_prompt(reference, lane, row):
            kept = 0
        elif is_continued(reference, row):
            differ = np.flatnonzero(a[count:count + kept] != b[count:count + kept])
            kept = int(differ[0]) + 1 if differ.size else kept
        rows.append(kept)
    return _cut(reference, rows), _cut(lane, rows)


def _cut(answers: Answers, kept: list[int]) -> Answers:
    """The first so many positions of each row."""
    return Answers(
        [numbers[:count] for numbers, count in zip(answers.numbers, kept, strict=True)],
        [decided[:count * (numbers.shape[1] - 1)] for decided, numbers, count in zip(answers.decisions, answers.numbers, kept, strict=True)],
        list(answers.tokens), list(answers.truncated), list(answers.spans), list(answers.ids))


def likeliest(answers: Answers, row: int) -> np.ndarray:
    """The likeliest tokens at each position of a row, first the first: int64 [positions, tokens]."""
    width = answers.numbers[row].shape[1] - 1
    return np.asarray(answers.decisions[row], np.int64).reshape(-1, width)


def tells_others(answers: Answers) -> bool:
    """Whether a runtime tells the likeliest tokens, too, and not only how likely those were that came."""
    return any(numbers.shape[1] > 1 for numbers in answers.numbers)


def came(answers: Answers, *, continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The logarithm of the probability of the token that came, at all positions: float64 [n]; and the row of each."""
    values, rows = [np.zeros(0)], [np.zeros(0, np.int64)]
    for row, numbers in enumerate(answers.numbers):
        if continued or not is_continued(answers, row):
            values.append(numbers[:, 0].astype(np.float64))
            rows.append(np.full(len(numbers), row))
    found = np.concatenate(values)
    return np.where(np.isfinite(found), found, IMPOSSIBLE), np.concatenate(rows)


@np.errstate(all="ignore")
def divergences(reference: Answers, lane: Answers) -> np.ndarray:
    """The Kullback-Leibler divergence of the lane's distribution from the original's at each position, in nats: float64 [n], or a little less."""
    found = []
    for row in range(len(reference.tokens)):
        for ours, theirs, p, q in zip(likeliest(reference, row), likeliest(lane, row), reference.numbers[row], lane.numbers[row], strict=True):
            value = least_divergence(ours, theirs, p[1:].astype(np.float64), q[1:].astype(np.float64))
            found.append(max(value, 0.0) if np.isfinite(value) else -IMPOSSIBLE)
    return np.array(found)


def least_divergence(ours: np.ndarray, theirs: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """What two distributions diverge by at least, of which the likeliest tokens are known.

    Args:
        ours: the original's likeliest tokens, int64 [tokens].
        theirs: the lane's.
        p: the logarithms of their probabilities, float64 [tokens], the greatest first.
        q: the lane's.

    Outcomes that are taken together diverge by no more than apart (the log sum inequality: Cover and Thomas, Elements of Information
    Theory, 2.7.1). So one bound is of the tokens that both know, and the rest as one. For another, what only the original knows stands for
    itself: the lane holds it for no likelier than the last that it knows. The first is nearer where the distributions are, the other where
    they have little in common.
    """
    _, i, j = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    alone = np.delete(p, i)
    known = float((np.exp(p[i]) * (p[i] - q[j])).sum())
    rest_q = max(1.0 - float(np.exp(q[j]).sum()), LEAST_REST)

    def rest(*taken: np.ndarray) -> float:
        rest_p = max(1.0 - sum(float(np.exp(logs).sum()) for logs in taken), LEAST_REST)
        return rest_p * float(np.log(rest_p / rest_q))

    return max(known + rest(p[i]), known + float((np.exp(alone) * (alone - q[-1])).sum()) + rest(p[i], alone))


def agreements(reference: Answers, lane: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Whether both hold the same token for the likeliest, wherever the original's own second is no near tie.

    Returns:
        bool [n], and the row of each, int64 [n].
    """
    equal, rows = [np.zeros(0, np.bool_)], [np.zeros(0, np.int64)]
    for row in range(len(reference.tokens)):
        sure = reference.numbers[row][:, 1] - reference.numbers[row][:, 2] > NEAR_TIE
        equal.append((likeliest(reference, row)[:, 0] == likeliest(lane, row)[:, 0])[sure])
        rows.append(np.full(int(sure.sum()), row))
    return np.concatenate(equal), np.concatenate(rows)


def faithful(reference: Answers, lane: Answers) -> list[bool]:
    """Of each continuation that the lane tells, whether it is the original's up to where two tokens were as good as equal in the original's opinion.

    Args:
        reference: the original's, :func:`aligned`.
        lane: the lane's.
    """
    found = []
    for row in range(len(reference.tokens)):
        if not is_continued(reference, row):
            continue
        ours = likeliest(reference, row)
        if not len(ours):
            if not same_prompt(reference, lane, row):
                found.append(False)
            continue
        first, other = ours[-1], lane.ids[row][lane.tokens[row] + len(ours) - 1]
        place = np.flatnonzero(first == other)
        # The likeliest come first: what is not among them is further away than any of them.
        gap = reference.numbers[row][-1, 1] - reference.numbers[row][-1, 1 + place[0]] if place.size else np.inf
        found.append(bool(gap <= NEAR_TIE))
    return found


def expectation_checks(dataset: str, reference: Answers, lane: Answers, given: Mapping[str, float], how: str) -> list[Check]:
    """The parity of a language model's lane on a data set.

    Args:
        dataset: the data set's name, for the checks' names.
        reference: the original's answers.
        lane: the lane's, row by row.
        given: bounds that the recipe sets.
        how: where the lane was measured.
    """
    reference, lane = aligned(reference, lane)
    checks = []

    def check(name: str, title: str, estimate: Estimate, *, most: bool, note: str | None = None, unit: str = "") -> None:
        bound = bound_for(name, Task.TEXT_GENERATION, given)
        if bound is not None:
            checks.append(Check(name=f"{title} ({dataset})", group="parity", verdict=(at_most if most else at_least)(estimate, bound),
                                figure=estimate, bound=bound, relation="<=" if most else ">=", how=how, unit=unit,
                                note=why_unproven(estimate) or note))

    ours, rows = came(reference)
    theirs, _ = came(lane)
    if len(ours):
        surprise = weighted_mean(ours - theirs)
        check("perplexity_ratio", "perplexity to the original's", bootstrap([lambda weights: np.exp(surprise(weights))], rows.tolist())[0],
              most=True, unit="x", note=f"{np.exp(-ours.mean()):,.4g} is the original's, over {len(ours):,} tokens")
    _, everywhere = came(reference, continued=True)
    tells = tells_others(lane)
    if len(everywhere) and tells:
        check("divergence", "divergence from the original's expectation",
              bootstrap([weighted_mean(divergences(reference, lane))], everywhere.tolist())[0], most=True, unit="nats")
    equal, where = agreements(reference, lane) if tells else (np.zeros(0, np.bool_), np.zeros(0, np.int64))
    if len(equal):
        estimate, sure = bootstrap([weighted_mean(equal)], where.tolist())[0], len(equal) / len(everywhere)
        bound, count = bound_for("agreement", Task.TEXT_GENERATION, given), len(np.unique(where))
        needed = enough(1 - bound) if bound is not None and 0 < bound < 1 else 0
        check("agreement", "same likeliest token where the original is sure",
              estimate.model_copy(update={"low": min(estimate.low, 1 - unseen(~equal, where.tolist()))}), most=False,
              note=f"{count} texts are too few to prove it, even without any difference; {needed} can" if count < needed else
              f"the original is at {sure:.0%} of {len(everywhere):,} positions; elsewhere its second token is nearly as likely as its first")
    kept = faithful(reference, lane)
    if kept:
        estimate, bound = proportion(sum(kept), len(kept)), bound_for("continuations", Task.TEXT_GENERATION, given)
        few = bound is not None and 0 < bound < 1 and len(kept) < enough(1 - bound)
        check("continuations", "continuations that leave the original at near ties only", estimate, most=False,
              note=f"{len(kept)} are too few to prove it, even without any other" if few else None)
    if not checks:
        checks.append(Check(name=f"what comes next ({dataset})", group="parity", verdict=Verdict.INCONCLUSIVE, how=how,
                            note="no text has two tokens to compare"))
    return checks
