"""Numbers as a reader of the report sees them: as many digits as say something, and no rounding that lands on a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeexport.verify.check import Check
from edgeexport.verify.intervals import Estimate

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"

# So many digits at most: more say nothing of a text model, and a rounding that would land on the bound gets more up to here.
DECIMALS_MAX = 6

# What is nearer to zero is the rounding of a difference of equal numbers.
NOISE = 1e-12


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals; what is not zero never shows as zero."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else f"{MINUS if value < 0 else ''}∞"
    text = f"{abs(value):,.{decimals}f}"
    if abs(value) < NOISE:
        return text
    if not float(text.replace(",", "")):
        return f"{'>' if value < 0 else '<'}{MINUS if value < 0 else ''}{10 ** -decimals:.{decimals}f}"
    return f"{MINUS if value < 0 else ''}{text}"


def plain(value: float) -> str:
    """A bound or another number that somebody chose: as it was written, without an exponent."""
    return fixed(value, next((d for d in range(DECIMALS_MAX) if math.isclose(round(value, d), value)), DECIMALS_MAX))


def three_digits(largest: float) -> int:
    """Decimals with which `largest` has three digits; those of a column, so that it lines up."""
    return min(4, max(0, 2 - math.floor(math.log10(largest)))) if 0 < largest < math.inf else 0


def amount(value: float) -> str:
    """A measured amount with three digits."""
    return fixed(value, three_digits(abs(value)))


def decimals_for(estimate: Estimate, bound: float | None = None, least: int = 3) -> int:
    """Decimals that an interval's width deserves, and enough that no end falls on the bound by rounding."""
    width = estimate.high - estimate.low
    decimals = math.ceil(0.5 - math.log10(width)) if math.isfinite(width) and width > 0 else 0
    return apart((estimate.value, estimate.low, estimate.high), bound, min(max(decimals, least), DECIMALS_MAX - 1))


def apart(values: Sequence[float], bound: float | None, decimals: int) -> int:
    """So many decimals or more, such that a number on one side of the bound does not read as the bound itself."""
    if bound is None:
        return decimals
    while decimals < DECIMALS_MAX and any(value != bound and round(value, decimals) == round(bound, decimals) for value in values):
        decimals += 1
    return decimals


@dataclass(frozen=True)
class Figure:
    """A figure as text: the value, and its interval where it has one."""

    value: str
    interval: str = ""


def estimate_figure(estimate: Estimate, bound: float | None = None, least: int = 3) -> Figure:
    """An estimate as value and ``[low, high]``."""
    decimals = decimals_for(estimate, bound, least)
    return Figure(fixed(estimate.value, decimals), f"[{fixed(estimate.low, decimals)}, {fixed(estimate.high, decimals)}]")


def check_figure(check: Check) -> Figure | None:
    """A check's figure without its unit; None where it has none."""
    if check.figure is None:
        return None
    if isinstance(check.figure, Estimate):
        return estimate_figure(check.figure, check.bound)
    decimals = 3 if check.unit in ("", "x") else three_digits(abs(check.figure))
    return Figure(fixed(check.figure, apart((check.figure,), check.bound, decimals)))


def unit(check: Check) -> str:
    """The unit, to be put after a number."""
    if check.unit.split(" ")[0] == "x":
        return f"×{check.unit[1:]}"
    return f"{NBSP}{check.unit}" if check.unit else ""


def megabytes(count: float) -> str:
    """Bytes in MB of 10^6 bytes, without the unit."""
    return amount(count / 1e6)


def percent(share: float) -> str:
    """A share, with the sign."""
    decimals = 0 if share in (0, 1) else 1
    return f"{fixed(100 * share, decimals)}{NBSP}%"
