"""The report: everything that was found out about a bundle, as data. HTML, terminal and JSON show this and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from edgeexport.artifact import Model
from edgeexport.verify.check import Verdict
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport


class StepReport(Model):
    """How a step went: its wall time in seconds and peak memory in MB of 2^20 bytes when it ran, and whether it ran now."""

    id: str
    stored: bool
    seconds: float
    peak_rss_mb: float | None
    bytes: int


class DatasetReport(Model):
    """A data set of the build."""

    name: str
    rows: int
    labelled: bool
    origin: str
    digest: str


class CompressionReport(Model):
    """What was taken out of the model before it was exported, and how what is left was trained.

    Attributes:
        parameters: number of weights of the original and of what is exported.
        vocabulary: tokens of both.
        embedding: numbers that a token has in the tables of both.
        layers: layers of both.
        heads: attention heads that each layer kept; empty where none was taken out.
        neurons: neurons that each feed-forward network kept; empty where none was taken out.
        coverage: data set → what the smaller vocabulary does to its texts.
        reconstruction: squared error of what the last layer comes to, as a share of the original's squared length, before and after what is left
            was fitted, on texts that it was not fitted on; None where it was not.
        training: steps that were done and planned, and the loss on development data after some of them.
    """

    parameters: tuple[int | None, int | None]
    vocabulary: tuple[int | None, int | None]
    embedding: tuple[int | None, int | None] = (None, None)
    layers: tuple[int | None, int | None]
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    coverage: dict[str, Any] = {}
    reconstruction: tuple[float, float] | None = None
    training: dict[str, Any] = {}


class CandidateReport(Model):
    """A candidate of the search that led to the recipe, judged on the development data.

    Attributes:
        title: what it is.
        size_bytes: of its largest lane.
        latency_ms: of its slowest lane, at the longest length.
        speedup: against float32, of the slowest lane at its slower length.
        metric: of the worst lane.
        distance: of its answers from the original's, in the lane that is farthest from it.
        front: whether no other beats it in size, latency and quality.
        chosen: whether it is what was built.
        misses: what it does not fulfil.
    """

    title: str
    size_bytes: int
    latency_ms: float
    speedup: float
    metric: Estimate
    distance: float
    front: bool
    chosen: bool
    misses: tuple[str, ...]


class ScoutReport(Model):
    """A candidate that was trained for a short time, and its loss on the development data then."""

    title: str
    loss: float


class FitReport(Model):
    """A candidate that was fitted and not trained, and how far its answers to the development data are from the original's."""

    title: str
    distance: float


class TimedReport(Model):
    """A candidate that was timed, to predict the speed of others: how many times as fast as float32, in the slowest lane at its slower length."""

    title: str
    speedup: float


class SearchReport(Model):
    """A search: its candidates in the order of trying, what was fitted, timed and trained to choose among them, and the original's metric on the
    development data."""

    candidates: tuple[CandidateReport, ...]
    fits: tuple[FitReport, ...] = ()
    timed: TimedReport | None = None
    scouts: tuple[ScoutReport, ...] = ()
    reference: Estimate


class Report(Model):
    """All findings of a build for one target."""

    schema_version: Literal[1] = 1
    name: str
    target: str
    target_title: str
    isa: str
    host: str
    verdict: Verdict
    scope: str
    model: dict[str, Any]
    text: dict[str, Any]
    datasets: tuple[DatasetReport, ...]
    lanes: tuple[LaneReport, ...]
    steps: tuple[StepReport, ...]
    compression: CompressionReport | None = None
    search: SearchReport | None = None


def interval_text(estimate: Estimate, digits: int = 4) -> str:
    """An estimate as ``0.9951 [0.9948, 0.9953]``."""
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
