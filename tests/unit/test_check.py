"""A check passes where the whole interval keeps its bound, fails where none of it does, and what is no number fails."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeexport.verify.check import Verdict, at_least, at_most, together
from edgeexport.verify.intervals import Estimate

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def estimate(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, n=10, method="m")


@pytest.mark.parametrize(("low", "high", "least", "most"), [
    (0.96, 0.98, PASS, FAIL), (0.95, 0.98, PASS, INCONCLUSIVE), (0.90, 0.98, INCONCLUSIVE, INCONCLUSIVE),
    (0.90, 0.95, INCONCLUSIVE, PASS), (0.90, 0.94, FAIL, PASS), (0.95, 0.95, PASS, PASS),
])
def test_the_whole_interval_decides(low: float, high: float, least: Verdict, most: Verdict) -> None:
    assert at_least(estimate(low, high), 0.95) is least
    assert at_most(estimate(low, high), 0.95) is most


def test_what_is_no_number_fails() -> None:
    assert at_least(estimate(math.nan, math.nan), 0.95) is FAIL
    assert at_most(estimate(math.nan, math.nan), 0.95) is FAIL


@given(st.lists(st.sampled_from([*Verdict, None])))
def test_of_several_verdicts_the_worst_counts_and_no_verdict_counts_for_nothing(verdicts: list[Verdict | None]) -> None:
    found = together(verdicts)
    expected = FAIL if FAIL in verdicts else INCONCLUSIVE if INCONCLUSIVE in verdicts else PASS if PASS in verdicts else None
    assert found is expected
