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


def interval_text(estimate: Estimate, digits: int = 4) -> str:
    """An estimate as ``0.9951 [0.9948, 0.9953]``."""
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
