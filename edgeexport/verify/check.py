"""A check: a figure against a bound, with what follows from its interval."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from edgeexport.artifact import Model
from edgeexport.verify.intervals import LEAST_CLUSTERS, Estimate


class Verdict(StrEnum):
    """What is proven."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Check(Model):
    """One line of a verdict.

    Attributes:
        name: what is checked, such as ``cosine, 5th percentile (probes)``.
        group: ``parity``, ``task metric``, ``budget`` or ``audit``.
        verdict: None where nothing was measured, or no bound is set.
        figure: the value, with its interval where it has one.
        bound: what it must keep.
        relation: ``>=`` or ``<=``.
        unit: of figure and bound.
        how: where the figure is from: measured on which machine, counted, or None.
        note: more that a reader should know.
    """

    name: str
    group: Literal["parity", "task metric", "budget", "audit"]
    verdict: Verdict | None
    figure: Estimate | float | None = None
    bound: float | None = None
    relation: Literal[">=", "<="] = ">="
    unit: str = ""
    how: str | None = None
    note: str | None = None


def at_least(estimate: Estimate, bound: float) -> Verdict:
    """Pass where the whole interval keeps the bound, fail where none of it does; neither where there is hardly an example."""
    if not estimate.proves:
        return Verdict.INCONCLUSIVE
    if estimate.low >= bound:
        return Verdict.PASS
    return Verdict.INCONCLUSIVE if estimate.high >= bound else Verdict.FAIL  # in this order, so that no number fails


def at_most(estimate: Estimate, bound: float) -> Verdict:
    """Pass where the whole interval keeps the bound, fail where none of it does; neither where there is hardly an example."""
    if not estimate.proves:
        return Verdict.INCONCLUSIVE
    if estimate.high <= bound:
        return Verdict.PASS
    return Verdict.INCONCLUSIVE if estimate.low <= bound else Verdict.FAIL


def why_unproven(estimate: Estimate) -> str | None:
    """What to say of a figure of hardly an example; None of any other."""
    if estimate.proves:
        return None
    return f"{'1 text proves' if estimate.clusters == 1 else f'{estimate.clusters} texts prove'} nothing; {LEAST_CLUSTERS} or more have an interval"


def together(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The verdict of several: the worst that was reached; None where none was."""
    found = {verdict for verdict in verdicts if verdict is not None}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in found:
            return verdict
    return None
