"""Task metrics on labelled data: the original's, the lane's, and the drop between them with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeexport.artifact import Model, Task
from edgeexport.dataset import Row
from edgeexport.session.evidence import Answers
from edgeexport.session.tasks import entity_runs
from edgeexport.verify.check import Check, at_most, why_unproven
from edgeexport.verify.expectations import aligned, came, is_continued, same_prompt
from edgeexport.verify.intervals import Estimate, Statistic, bootstrap, enough, ratio, unseen, weighted_mean


class MetricResult(Model):
    """A metric of the original and of a lane.

    Attributes:
        name: such as ``recall@1``.
        reference: the original's value.
        lane: the lane's.
        drop: the original's less the lane's.
        broken: examples that the original has right and the lane wrong; None for a metric without right and wrong.
        fixed: the other way round.
        is_share: whether it is a share of what is right, so that a few examples, be they all right, leave open that more are wrong.
    """

    name: str
    reference: Estimate
    lane: Estimate
    drop: Estimate
    broken: int | None = None
    fixed: int | None = None
    is_share: bool = True


@np.errstate(all="ignore")
def retrieval_ranks(rows: Sequence[Row], answers: Answers) -> np.ndarray:
    """Rank of the right document for each query, from 0; float64 [queries]. Ties, and what is no number, count against the model.

    The index holds every document, embedded by the model under test; similarity is the cosine.
    """
    vectors = np.stack([numbers.mean(axis=0) for numbers in answers.numbers]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    documents = [i for i, row in enumerate(rows) if row.role == "document"]
    queries = [i for i, row in enumerate(rows) if row.role == "query"]
    place = {rows[i].id: column for column, i in enumerate(documents)}
    scores = vectors[queries] @ vectors[documents].T
    right = np.array([place[str(rows[i].label)] for i in queries])
    own = scores[np.arange(len(queries)), right]
    return np.asarray((~(scores < own[:, None])).sum(axis=1) - 1, np.float64)


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Mean over the classes of the data of the F1 score, as a statistic of the examples' weights.

    Source: the definition of scikit-learn's f1_score(average="macro", zero_division=0), over the classes that occur in the truth.
    """
    classes = np.unique(truth)
    hit = np.stack([(truth == c) & (predicted == c) for c in classes], axis=1).astype(np.float64)
    either = np.stack([(truth == c).astype(np.float64) + (predicted == c) for c in classes], axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights @ either
        scores = np.divide(2 * (weights @ hit), total, out=np.zeros_like(total), where=total > 0)
        return np.asarray(scores.mean(axis=1))

    return statistic


Spans = set[tuple[int, int, str]]


def entities(labels: Sequence[str], answers: Answers) -> list[Spans]:
    """What a model finds in each text: first and last character and name of each entity, as its words' classes and places say."""
    return [{(int(spans[first, 0]), int(spans[last, 1]), name) for first, last, name in entity_runs([labels[i] for i in decided])}
            for decided, spans in zip(answers.decisions, answers.spans, strict=True)]


def entity_f1(truths: Sequence[Spans], found: Sequence[Spans]) -> Statistic:
    """F1 over all entities of all texts, as a statistic of the texts' weights; one counts where both ends and the name are right.

    Source: E. F. Tjong Kim Sang, F. De Meulder, "Introduction to the CoNLL-2003 Shared Task" (2003), section 2.3.
    """
    hits = np.array([len(truth & spans) for truth, spans in zip(truths, found, strict=True)], np.float64)
    sizes = np.array([len(truth) + len(spans) for truth, spans in zip(truths, found, strict=True)], np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights @ sizes
        return np.divide(2 * (weights @ hits), total, out=np.zeros_like(total), where=total > 0)

    return statistic


def compare(task: Task, rows: Sequence[Row], labels: Sequence[str], reference: Answers, lane: Answers) -> list[MetricResult]:
    """The metrics of a task on labelled rows, the first being the one that decides; empty where the task has none.

    Intervals are paired: each resample takes the same examples for the original and the lane.
    """
    if any(row.role == "query" for row in rows):
        clusters = [row.label for row in rows if row.role == "query"]
        a, b = retrieval_ranks(rows, reference), retrieval_ranks(rows, lane)
        return [
            _result("recall@1", weighted_mean(a < 1), weighted_mean(b < 1), clusters, right=(a < 1, b < 1)),
            _result("MRR", weighted_mean(1 / (a + 1)), weighted_mean(1 / (b + 1)), clusters),
            _result("recall@5", weighted_mean(a < 5), weighted_mean(b < 5), clusters, right=(a < 5, b < 5)),
        ]
    if task is Task.TEXT_CLASSIFICATION and all(len(decided) == 1 for decided in reference.decisions):
        ids = {label: i for i, label in enumerate(labels)}
        truth = np.array([ids[str(row.label)] for row in rows])
        a, b = (np.array([decided[0] for decided in answers.decisions]) for answers in (reference, lane))
        clusters = [row.id for row in rows]
        return [
            _result("accuracy", weighted_mean(a == truth), weighted_mean(b == truth), clusters,
                    right=(a == truth, b == truth)),
            _result("macro F1", macro_f1(truth, a), macro_f1(truth, b), clusters),
        ]
    if task is Task.TOKEN_CLASSIFICATION:
        truths = [{(entity.start, entity.end, entity.label) for entity in row.entities or ()} for row in rows]
        found, kept = entities(labels, reference), entities(labels, lane)
        result = _result("entity F1", entity_f1(truths, found), entity_f1(truths, kept), [row.id for row in rows])
        return [_unproven(result, np.array([x != y for x, y in zip(found, kept, strict=True)]), [row.id for row in rows])]
    if task is Task.TEXT_GENERATION:
        return likelihoods(reference, lane)
    return []


def likelihoods(reference: Answers, lane: Answers) -> list[MetricResult]:
    """The log-likelihood per token, of the same tokens; or where one of the two cuts texts into others, per character, and in the scale of the
    reference's tokens. Nothing where there is no token."""
    if all(same_prompt(reference, lane, row) for row in range(len(reference.tokens))):
        ours, theirs = aligned(reference, lane)
        (a, texts), (b, _) = came(ours), came(theirs)
        return [_result("log-likelihood per token", weighted_mean(a), weighted_mean(b), texts.tolist(), is_share=False)] if len(a) else []
    totals = [_by_text(answers) for answers in (reference, lane)]
    read = (totals[0][1] > 0) & (totals[1][1] > 0)
    tokens = sum(len(numbers) for numbers, counts in zip(reference.numbers, read, strict=True) if counts)
    if not tokens:
        return []
    scale = totals[0][1][read].sum() / tokens
    of_reference, of_lane = (ratio(scale * logs[read], characters[read]) for logs, characters in totals)
    found = _result("log-likelihood per token", of_reference, of_lane, np.flatnonzero(read).tolist(), is_share=False)
    return [found.model_copy(update={name: getattr(found, name).model_copy(update={"n": tokens}) for name in ("reference", "lane", "drop")})]


def _by_text(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the log-likelihoods of each text's tokens, and how many characters they are: float64 [texts] each; nothing of continuations."""
    logs, characters = np.zeros(len(answers.tokens)), np.zeros(len(answers.tokens))
    values, rows = came(answers)
    np.add.at(logs, rows, values)
    for row, spans in enumerate(answers.spans):
        characters[row] = 0 if is_continued(answers, row) else float((spans[:, 1] - spans[:, 0]).sum())
    return logs, characters


def _result(name: str, reference: Statistic, lane: Statistic, clusters: Sequence[object],
            right: tuple[np.ndarray, np.ndarray] | None = None, *, is_share: bool = True) -> MetricResult:
    both = bootstrap([reference, lane, lambda weights: reference(weights) - lane(weights)], clusters)
    if right is None:
        return MetricResult(name=name, reference=both[0], lane=both[1], drop=both[2], is_share=is_share)
    broken, fixed = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    result = MetricResult(name=name, reference=both[0], lane=both[1], drop=both[2], broken=broken, fixed=fixed)
    return _unproven(result, right[0] != right[1], clusters)


def _unproven(result: MetricResult, changed: np.ndarray, clusters: Sequence[object]) -> MetricResult:
    """The result, whose drop reaches as far as the share of changed examples that stays possible where hardly any was seen."""
    open_share = unseen(changed, clusters)
    return result.model_copy(update={"drop": result.drop.model_copy(update={"high": max(result.drop.high, open_share)})}) if open_share else result


def metric_check(results: Sequence[MetricResult], max_drop: float, how: str, *, labelled: bool) -> Check:
    """The check of the metric that decides; without labelled data, or a metric for the task, a check without a verdict."""
    if not results:
        note = "labelled data, but edgeexport has no metric for this task yet" if labelled else "no labelled data"
        return Check(name="task metric", group="task metric", verdict=None, note=note)
    first = results[0]
    notes = [f"{first.broken} answers broken, {first.fixed} fixed"] if first.broken is not None else []
    if first.is_share and first.drop.n < (needed := enough(max_drop)):
        notes.append(f"{first.drop.n} are too few to prove it, even without any change; {needed} can")
    elif why := why_unproven(first.drop):
        notes.append(why)
    return Check(name=f"drop of {first.name}", group="task metric", verdict=at_most(first.drop, max_drop), figure=first.drop, bound=max_drop,
                 relation="<=", how=how, note="; ".join(notes) or None)
