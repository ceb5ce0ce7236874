"""From evidence to a verdict: all checks of a lane, and what they say together. Pure: arrays in, a report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeexport.artifact import Task
from edgeexport.dataset import Dataset
from edgeexport.inspection.model import ModelReport
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.target import Budget, Lane, Target
from edgeexport.verify.audit import audit_checks
from edgeexport.verify.check import Check, Verdict, together
from edgeexport.verify.expectations import aligned
from edgeexport.verify.lane_report import LaneReport, SpeedReport
from edgeexport.verify.margins import VECTOR_TASKS
from edgeexport.verify.metrics import MetricResult, compare, metric_check
from edgeexport.verify.parity import largest_difference, parity_checks

# Two runs of the same model on different machines differ in the last bits even in float32.
FLOAT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Question:
    """What the judgement of a build starts from.

    Attributes:
        task: the task.
        labels: the names of the classes.
        parameters: number of unique weights, for ratios of size.
        datasets: name → the rows that were answered.
        labelled: the data set whose labels judge: ``evaluation``, or ``development`` while a search chooses.
        reference: name → the answers in float32 that lanes are compared with, with texts cut as in the lanes: the original's, or those of
            the checkpoint that was made of it and is judged by the task metric.
        original: the original's answers to the evaluation data; where texts are cut earlier than it must, also those to the uncut
            data, by the name that :func:`untruncated` gives.
        margins: bounds of parity that the recipe sets.
        max_drop: margin of the task metric.
        budget: the recipe's limits; they come before the target's.
        host_isa: instruction set of the machine that measured.
        host: how figures name it.
    """

    task: Task
    labels: Sequence[str]
    parameters: int | None
    datasets: Mapping[str, Dataset]
    labelled: str
    reference: Mapping[str, Answers]
    original: Mapping[str, Answers]
    margins: Mapping[str, float]
    max_drop: float
    budget: Budget
    host_isa: str
    host: str


def judge_lane(question: Question, target: Target, lane: Lane, variant: str, answers: Mapping[str, Answers], speed: Mapping[str, Any],
               model: ModelReport, problems: Sequence[str]) -> LaneReport:
    """All checks of a lane.

    Args:
        question: what is asked of every lane.
        target: the target.
        lane: the lane.
        variant: the variant that it runs.
        answers: data set → the lane's answers.
        speed: what the agent measured.
        model: what is in the variant's file.
        problems: what in the file the runtime can't run.
    """
    how = f"measured on this {question.host} in {lane.verified_by}"
    checks = [check for name in answers
              for check in parity_checks(question.task, name, question.reference[name], answers[name], question.margins, how)]
    metrics: list[MetricResult] = []
    uncut: list[MetricResult] = []
    distance = None
    data = question.datasets.get(question.labelled)
    if data is not None:
        distance = mean_distance(question.task, *comparable(question.task, question.original[data.name], answers[data.name]))
        metrics, uncut = lane_metrics(question.task, data, question.labels, question.original, answers)
    checks.append(metric_check(uncut or metrics, question.max_drop, how, labelled=data is not None))
    checks += budget_checks(question, target, model.bytes, speed, how)
    precision = variant.removeprefix(f"{lane.format}-")
    checks += audit_checks(model, lane, precision, problems)

    verdict = together(check.verdict for check in checks) or Verdict.INCONCLUSIVE
    pairs = {name: comparable(question.task, question.reference[name], found) for name, found in answers.items()}
    differences = [largest_difference(*pair) for pair in pairs.values()]
    return LaneReport(
        lane=lane.name, format=lane.format, runtime=lane.runtime, runtime_version=lane.version, verified_by=lane.verified_by,
        required=lane.required, note=lane.note, variant=variant, precision=precision, verdict=verdict,
        scope=scope(checks, verdict, question.host_isa, target.device.isa, question.host), checks=tuple(checks), metrics=tuple(metrics),
        untruncated=tuple(uncut), size_bytes=model.bytes,
        size_ratio=model.bytes / (4 * question.parameters) if question.parameters else None,
        truncated={name: float(np.mean(found.truncated)) for name, found in answers.items()},
        largest_difference=None if None in differences else max(each for each in differences if each is not None), distance=distance,
        golden_tolerance=tolerance(*pairs["probes"]),
        compute={"integer_weight_share": model.integer_weight_share, "integer_compute_share": model.integer_compute_share},
        speed=SpeedReport.model_validate({**speed, "how": how}))


def comparable(task: Task, reference: Answers, lane: Answers) -> tuple[Answers, Answers]:
    """Both, without what can't be compared number by number: what a language model goes on with after it went another way."""
    if task is not Task.TEXT_GENERATION:
        return reference, lane
    ours, theirs = aligned(reference, lane)
    # What a runtime does not tell can't be compared either.
    return replace(ours, numbers=[a[:, :b.shape[1]] for a, b in zip(ours.numbers, theirs.numbers, strict=True)]), theirs


def lane_metrics(task: Task, data: Dataset, labels: Sequence[str], original: Mapping[str, Answers],
                 lane: Mapping[str, Answers]) -> tuple[list[MetricResult], list[MetricResult]]:
    """The task metrics against the original with texts cut as in the lane, and against the uncut original.

    The second are empty where nothing could be cut; else the drop that counts is theirs.
    """
    own, found = original[data.name], lane[data.name]
    metrics = compare(task, data.rows, labels, own, found)
    uncut = original.get(untruncated(data.name))
    if uncut is None:
        return metrics, []
    return metrics, compare(task, data.rows, labels, uncut, found) if any(own.truncated) else metrics


def budget_checks(question: Question, target: Target, size: int, speed: Mapping[str, Any], how: str) -> list[Check]:
    """The limits of recipe and target, each against what was measured; a limit of the device that only a device can show stays open."""
    own, device = question.budget, target.budget
    checks = []

    def limit(name: str, title: str, value: float | None, unit: str, where: str | None, note: str | None = None) -> None:
        """Check a figure against the recipe's limit, else the target's, if either has one."""
        bound = getattr(own, name) if getattr(own, name) is not None else getattr(device, name)
        if bound is None:
            return
        verdict = None if value is None else Verdict.PASS if value <= bound else Verdict.FAIL
        if verdict is Verdict.FAIL:
            note = f"the limit is the {'recipe' if getattr(own, name) is not None else 'target'}'s; budget.{name} in the recipe sets another"
        checks.append(Check(name=title, group="budget", verdict=verdict, figure=value, bound=bound, relation="<=", unit=unit, how=where, note=note))

    limit("size_mb_max", "size", size / 1e6, "MB", "counted")
    ratio = size / (4 * question.parameters) if question.parameters else None
    limit("size_ratio_max", "size to float32 weights", ratio, "x", "counted", None if ratio else "the number of parameters is unknown")
    limit("ram_mb_max", "peak memory", speed["peak_rss_mb"], "MB", how)
    limit("latency_ms_max", "latency at the largest length", None, "ms", None,
          "not measured on the device; see the latency on the host below")
    return checks


def tolerance(reference: Answers, lane: Answers) -> float:
    """How far another machine's run may lie from this lane's golden vectors, as a relative distance.

    No further than the lane itself lies from the original in 99 of 100 texts: an error of that size was accepted when it passed.
    """
    return max(FLOAT_TOLERANCE, float(np.quantile([d for d in relative_distances(reference, lane) if np.isfinite(d)] or [0.0], 0.99)))


@np.errstate(all="ignore")
def relative_distances(reference: Answers, lane: Answers) -> list[float]:
    """Euclidean distance of each text's numbers to the reference's, relative to their length; infinite where it is no number."""
    found = [float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30)) if a.shape == b.shape else np.inf
             for a, b in zip(reference.numbers, lane.numbers, strict=True)]
    return [distance if np.isfinite(distance) else np.inf for distance in found]


def mean_distance(task: Task, reference: Answers, lane: Answers) -> float:
    """Mean over the texts of the relative distance: 0 where all is the same, 1 for a text of which nothing is left.

    Between models that cut words into other tokens, too: vectors of tokens are compared by their mean, and where one of them cuts more off a text,
    the words that both have read.
    """
    def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return one.mean(axis=0, keepdims=True) if task in VECTOR_TASKS else one[:len(other)]

    pairs = list(zip(reference.numbers, lane.numbers, strict=True))
    one, other = (replace(answers, numbers=[alike(*pair) for pair in each])
                  for answers, each in ((reference, pairs), (lane, [(b, a) for a, b in pairs])))
    return float(np.mean(np.minimum(relative_distances(one, other), 1.0)))


def scope(checks: Sequence[Check], verdict: Verdict, host_isa: str, device_isa: str, host: str) -> str:
    """The verdict in words: what it covers, and where it was measured.

    Evidence has an instruction set: a lane of an ARM target that was run on x86 says so wherever its verdict shows.
    """
    where = f"({host})" if host_isa == device_isa else f"({host}; not run on {device_isa})"
    parts = [f"{verdict.value} {where}"]
    for group in ("parity", "task metric", "budget", "audit"):
        inside = [check for check in checks if check.group == group]
        if not inside:
            continue
        found = together(check.verdict for check in inside)
        note = next((check.note for check in inside if check.verdict is None and check.note), "not measured")
        parts.append(f"{group}: {found.value}" if found else f"{group}: null, {note}")
    return "; ".join(parts)
