"""The plots of the report: what lies where, as shares of width and height; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeexport.report.model import Report, SearchReport
from edgeexport.report.numbers import DECIMALS_MAX, amount, fixed, megabytes, plain
from edgeexport.verify.check import Check
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport


@dataclass(frozen=True)
class IntervalPlot:
    """A figure against its bound, which lies in the middle; right of it is what keeps the bound, whatever the relation.

    Attributes:
        dot: where the figure is, in percent of the width.
        low: where its interval begins, seen from the left; None without an interval.
        high: where that ends.
        edge: where the figure's range ends on the right.
        ends: the numbers at the left end and at `edge`.
        bound: the number in the middle.
    """

    dot: float
    low: float | None
    high: float | None
    edge: float
    ends: tuple[str, str]
    bound: str


def interval_plot(check: Check) -> IntervalPlot | None:
    """The plot of a check; None where there is no figure or no bound.

    The width is that of the figure's own range (up to 1 for a share, down to 0 for an amount), so that plots of the same figure compare;
    it is wider where the figure is far out, and narrower where it is so near that its side could not be seen.
    """
    if check.figure is None or check.bound is None:
        return None
    figure, bound = check.figure, check.bound
    numbers = [figure.low, figure.value, figure.high] if isinstance(figure, Estimate) else [float(figure)]
    reach = max((abs(number - bound) for number in numbers if math.isfinite(number)), default=0.0)
    # The best that the figure can be; None where it has no end, such as a drop, which may be a gain.
    best = None
    if check.relation == ">=" and 0 < bound < 1 and max(numbers) <= 1:
        best = 1.0
    elif check.relation == "<=" and bound > 0 and min(numbers) >= 0:
        best = 0.0
    natural = abs(bound) if best is None else abs(best - bound)
    # A whisker needs more room than a dot before its side of the line can be seen.
    near = natural / (6 if isinstance(figure, Estimate) else 30)
    half = (natural if near < reach <= natural else rounded_up(1.1 * reach)) or natural or 1.0
    sign = 1 if check.relation == ">=" else -1

    def place(number: float) -> float:
        return 50.0 if math.isnan(number) else min(100.0, max(0.0, 50 + 50 * sign * (number - bound) / half))

    left, right = bound - sign * half, bound + sign * half
    if best is not None and half > natural:
        right = best
    decimals = min(DECIMALS_MAX, max(0, 1 - math.floor(math.log10(half))))
    low = high = None
    if isinstance(figure, Estimate):
        low, high = sorted((place(figure.low), place(figure.high)))
    ends = plain(round(left, decimals)), plain(round(right, decimals))
    return IntervalPlot(place(numbers[len(numbers) // 2]), low, high, place(right), ends, plain(bound))


def rounded_up(number: float) -> float:
    """The next number above with one digit, such as 0.06 for 0.0513; 0 for 0."""
    power = 10.0 ** math.floor(math.log10(number)) if number > 0 else 1.0
    return math.ceil(number / power) * power


@dataclass(frozen=True)
class Point:
    """A median latency: places in percent of width and height; the whisker ends at the 95th percentile."""

    x: float
    y: float
    p95: float


@dataclass(frozen=True)
class Curve:
    """A lane's latency by length; `label_y` is where its name stands, apart from the other names."""

    lane: str
    style: int
    points: tuple[Point, ...]
    last: str
    label_y: float


@dataclass(frozen=True)
class LatencyChart:
    """Latency by length, both axes logarithmic: (place in percent, text) of each tick, and a curve per lane."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    curves: tuple[Curve, ...]


def latency_chart(lanes: Sequence[LaneReport]) -> LatencyChart | None:
    """The chart of all lanes with latencies; None where there are none."""
    measured = [(number, lane.lane, lane.speed.latency_ms) for number, lane in enumerate(lanes) if lane.speed and lane.speed.latency_ms]
    values = [value for _, _, latency in measured for times in latency.values() for value in times.values() if 0 < value < math.inf]
    if not values:
        return None
    lengths = sorted({length for _, _, latency in measured for length in latency})
    ticks = [base * 10.0 ** power for power in range(-4, 8) for base in (1, 2, 5)]
    bottom = max(tick for tick in ticks if tick <= min(values))
    top = min(tick for tick in ticks if tick >= max(values))

    def x(length: float) -> float:
        return 50.0 if len(lengths) == 1 else 100 * math.log(length / lengths[0]) / math.log(lengths[-1] / lengths[0])

    def y(value: float) -> float:
        return 50.0 if top == bottom else 100 - 100 * math.log(min(max(value, bottom), top) / bottom) / math.log(top / bottom)

    curves = []
    for number, lane, latency in measured:
        points = tuple(Point(x(length), y(times["p50"]), y(times["p95"])) for length, times in sorted(latency.items()))
        curves.append(Curve(lane, number % 6, points, amount(latency[max(latency)]["p50"]), points[-1].y))
    kept = [tick for tick in ticks if bottom <= tick <= top]
    if len(kept) > 9:
        kept = [tick for tick in kept if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9) or tick in (bottom, top)]
    x_ticks = tuple((x(length), str(length)) for length in lengths)
    return LatencyChart(x_ticks, tuple((y(tick), plain(tick)) for tick in kept), spread(curves))


def spread(curves: Sequence[Curve], gap: float = 8.0) -> tuple[Curve, ...]:
    """The curves with their names moved apart where they would overlap; from the top down, then back up from the bottom."""
    order = sorted(curves, key=lambda curve: curve.label_y)
    places = [curve.label_y for curve in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places = [min(place, 100 - gap * (len(places) - 1 - i)) for i, place in enumerate(places)]
    return tuple(Curve(curve.lane, curve.style, curve.points, curve.last, place) for curve, place in zip(order, places, strict=True))


@dataclass(frozen=True)
class Candidate:
    """A candidate of a search: places in percent of width and height, with the ends of its interval; how it is drawn, its number, and how
    many pixels that stands to the right."""

    number: int
    x: float
    y: float
    low: float
    high: float
    style: str
    label: int


# Of width and height, in percent: nearer points would have their numbers on top of each other.
CLOSE = 5


@dataclass(frozen=True)
class SearchChart:
    """Quality by size: (place in percent, text) of each tick, the original's place, and the candidates."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    reference: float
    candidates: tuple[Candidate, ...]


def search_chart(search: SearchReport | None) -> SearchChart | None:
    """The chart of a search; None where there was none."""
    if search is None:
        return None
    sizes = [each.size_bytes / 1e6 for each in search.candidates]
    qualities = [number for each in search.candidates for number in (each.metric.low, each.metric.high)] + [search.reference.value]
    x_ends, y_ends = (0.0, rounded_up(max(sizes))), (math.floor(20 * min(qualities)) / 20, math.ceil(20 * max(qualities)) / 20)

    def x(size: float) -> float:
        return 100 * (size - x_ends[0]) / (x_ends[1] - x_ends[0])

    def y(quality: float) -> float:
        return 100 - 100 * (quality - y_ends[0]) / ((y_ends[1] - y_ends[0]) or 1.0)

    candidates: list[Candidate] = []
    for number, (each, size) in enumerate(zip(search.candidates, sizes, strict=True), 1):
        place, height = x(size), y(each.metric.value)
        near = sum(abs(other.x - place) < CLOSE and abs(other.y - height) < CLOSE for other in candidates)
        candidates.append(Candidate(number, place, height, y(each.metric.low), y(each.metric.high),
                                    "chosen" if each.chosen else "front" if each.front else "beaten", 13 + 14 * near))
    steps = 4
    x_ticks = tuple((100 * i / steps, plain(x_ends[1] * i / steps)) for i in range(steps + 1))
    y_ticks = tuple((100 - 100 * i / steps, fixed(y_ends[0] + (y_ends[1] - y_ends[0]) * i / steps, 3)) for i in range(steps + 1))
    return SearchChart(x_ticks, y_ticks, y(search.reference.value), tuple(candidates))


@dataclass(frozen=True)
class Bar:
    """A size: its name, MB, share of the longest bar in percent, and size relative to float32 where that is known."""

    name: str
    detail: str
    megabytes: str
    width: float
    ratio: float | None
    float32: bool = False


def size_bars(report: Report) -> list[Bar]:
    """A bar for the float32 weights, where the parameters are known, and one for each lane's files."""
    whole = report.model.get("float32_bytes")
    sizes = [(lane.lane, lane.precision or "", lane.size_bytes, lane.size_ratio) for lane in report.lanes if lane.size_bytes is not None]
    longest = max([whole or 0, *(size for _, _, size, _ in sizes)]) or 1
    bars = [Bar("float32 weights", "", megabytes(whole), 100 * whole / longest, None, float32=True)] if whole else []
    return bars + [Bar(name, precision, megabytes(size), 100 * size / longest, ratio) for name, precision, size, ratio in sizes]
