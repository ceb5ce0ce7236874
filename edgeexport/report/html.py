"""The report as a page: one self-contained file that asks for nothing from anywhere.

The template draws; what is a number, a place in a plot or a sentence is worked out here.
"""

from __future__ import annotations

import importlib.resources
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from edgeexport.report.model import CompressionReport, Report, SearchReport
from edgeexport.verify.check import Check, Verdict, together
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport

TEMPLATE = "report.html.jinja"
NOT_MEASURED = "not measured"
MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"

# So many digits at most: more say nothing of a text model, and a rounding that would land on the bound gets more up to here.
DECIMALS_MAX = 6

# What is nearer to zero is the rounding of a difference of equal numbers.
NOISE = 1e-12

# Titles of the text spec's and the model's keys; a key that is not here shows under its own name.
TEXT_TITLES = {
    "max_length": "Longest text, in tokens", "own_max_length": "Longest text that the checkpoint takes, in tokens",
    "inputs": "Inputs of the model", "pad_id": "Padding token id", "mask_id": "Mask token id", "pooling": "Pooling of token vectors",
    "normalize": "Vectors scaled to length 1", "query_prefix": "Put before a query", "document_prefix": "Put before a document",
}
MODEL_TITLES = {
    "source": "Source", "revision": "Revision", "base": "Base model, into which the adapter is merged", "base_revision": "Base model's revision",
    "lossy_source": "Quantized already; what that cost is in the reference too", "task": "Task", "architecture": "Architecture",
    "parameters": "Parameters, tied ones once", "float32_bytes": "Float32 weights, bytes", "licence": "Licence, as its files state it",
    "labels": "Labels",
}
LABELS_SHOWN = 24


# --- numbers -------------------------------------------------------------------------------------------------------------------------


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


# --- plots ---------------------------------------------------------------------------------------------------------------------------


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


# --- words ---------------------------------------------------------------------------------------------------------------------------


def where(scope: str) -> str:
    """Where a verdict was reached, out of its scope: ``host x86-64; not run on aarch64``. The whole scope, if it has another form."""
    found = re.match(r"\w+ \((.*?)\)(;|$)", scope)
    return found[1] if found else scope


def counted(report: Report) -> list[LaneReport]:
    """The lanes that decide the report's verdict: the required ones that were judged, else all that were."""
    judged = [lane for lane in report.lanes if lane.verdict is not None]
    return [lane for lane in judged if lane.required] or judged


def sentences(report: Report) -> list[str]:
    """The verdict in plain words."""
    lanes = counted(report)
    if not lanes:
        return ["No lane is offered, so nothing was measured."]
    found = []
    for verdict, words in ((Verdict.FAIL, "fails"), (Verdict.INCONCLUSIVE, "is inconclusive in")):
        for lane in lanes:
            names = [f"“{check.name}”" for check in lane.checks if check.verdict is verdict]
            if names:
                found.append(f"Lane {lane.lane} {words} {len(names)} of {len(lane.checks)} checks: {listed(names)}.")
    if any(check.verdict is Verdict.INCONCLUSIVE for lane in lanes for check in lane.checks):
        found.append("Inconclusive: the interval lies on both sides of the bound, and more examples would narrow it.")
    if not found and report.verdict is Verdict.PASS:
        which = "the lane" if len(lanes) == 1 else f"each of the {len(lanes)} {'required ' if lanes[0].required else ''}lanes"
        found.append(f"Every figure that was checked keeps its bound in {which}, with its whole 95{NBSP}% interval where it has one.")
    elif not found:
        found.append("No check reached a verdict.")
    for lane in report.lanes:
        if lane not in lanes and lane.verdict not in (None, Verdict.PASS):
            found.append(f"The optional lane {lane.lane} does not count; its verdict is {lane.verdict}.")
    return found


def listed(names: Sequence[str]) -> str:
    """Names as ``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def open_checks(report: Report) -> list[tuple[str, str]]:
    """What has no verdict, each once: the check with the lanes where, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for lane in report.lanes:
        for check in lane.checks:
            if check.verdict is None:
                found.setdefault((check.name, check.note or NOT_MEASURED), []).append(lane.lane)
    offered = sum(lane.variant is not None for lane in report.lanes)
    return [(name if len(lanes) == offered else f"{name} (lane {listed(lanes)})", note) for (name, note), lanes in found.items()]


def groups(report: Report) -> list[tuple[str, Verdict | None]]:
    """The verdict of each group of checks, over the lanes that decide."""
    checks = [check for lane in counted(report) for check in lane.checks]
    found = []
    for group in ("parity", "task metric", "budget", "audit"):
        inside = [check.verdict for check in checks if check.group == group]
        if inside:
            found.append((group, together(inside)))
    return found


def by_group(checks: Sequence[Check]) -> list[tuple[str, list[Check]]]:
    """Checks under their groups, in the order they come."""
    return [(group, list(inside)) for group, inside in itertools.groupby(checks, key=lambda check: check.group)]


def obtained(check: Check) -> str:
    """How a figure was obtained: where, from how many examples, and how its interval was made."""
    parts = [check.how] if check.how else []
    if isinstance(check.figure, Estimate):
        parts.append(f"{check.figure.n:,}{NBSP}examples, interval by {check.figure.method}")
    return "; ".join(parts)


def setting(value: Any) -> str:
    """A value of the text spec or the model, as a person would write it."""
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        more = len(value) - LABELS_SHOWN
        return ", ".join(str(item) for item in value[:LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    # A blank at an end, as prefixes have, could not be seen without quotes.
    return f"“{value}”" if str(value) != str(value).strip() else str(value)


def model_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of the model; a licence that no file states is said to be so."""
    unknown = {"licence": "not stated", "parameters": "unknown", "float32_bytes": "unknown", "revision": "none recorded"}
    rows = []
    for key in [*(key for key in MODEL_TITLES if key in model), *(key for key in model if key not in MODEL_TITLES)]:
        value = model[key]
        # What only some sources have.
        if key in {"labels", "base", "base_revision", "lossy_source"} and not value:
            continue
        text = unknown.get(key, "none") if value is None else f"{value:,}" if isinstance(value, int) else setting(value)
        rows.append((MODEL_TITLES.get(key, key), text))
    return rows


def compression_rows(found: CompressionReport) -> list[tuple[str, str]]:
    """What was taken out, as pairs of title and text."""
    rows = []
    for title, (before, after) in (("parameters", found.parameters), ("tokens", found.vocabulary), ("numbers in a token's vector", found.embedding),
                                   ("layers", found.layers)):
        if before is not None and after is not None and before != after:
            rows.append((title, f"{after:,} of {before:,} ({percent(after / before)})"))
    for title, kept in (("attention heads by layer", found.heads), ("neurons by network", found.neurons)):
        if kept:
            rows.append((title, ", ".join(map(str, kept))))
    if found.reconstruction is not None:
        rows.append(("squared error of the last hidden states, when fitted", " → ".join(map(percent, found.reconstruction))))
    if found.training:
        history = found.training.get("history") or []
        rows.append(("training", f"{found.training['steps']:,} of {found.training['of']:,} steps"))
        if history:
            first, last = (fixed(loss, 4) for _, loss in (history[0], history[-1]))
            rows.append(("loss on the development data", f"{first} → {last}"))
    return rows


def text_rows(text: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The text spec: title, key, value and the source of the value."""
    sources = text.get("sources", {})
    keys = [*(key for key in TEXT_TITLES if key in text), *(key for key in text if key not in TEXT_TITLES and key != "sources")]
    return [(TEXT_TITLES.get(key, key), key, setting(text[key]), str(sources.get(key, ""))) for key in keys]


def cut_shares(lanes: Sequence[LaneReport]) -> list[tuple[str, str]]:
    """Data set and the share of its texts that lanes cut; from the least to the most where lanes differ."""
    names = dict.fromkeys(name for lane in lanes for name in lane.truncated)
    found = []
    for name in names:
        shares = {percent(lane.truncated[name]): lane.truncated[name] for lane in lanes if name in lane.truncated}
        ends = sorted(shares, key=lambda text: shares[text])
        found.append((name, ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"))
    return found


def step_parts(step_id: str) -> tuple[str, str]:
    """A step's name and what it was for, out of ``name[what]``."""
    name, _, rest = step_id.partition("[")
    return name, rest.removesuffix("]")


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page: no script, no request, everything inline."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "amount": amount, "fixed": fixed, "plain": plain, "percent": percent, "megabytes": megabytes, "unit": unit, "where": where,
        "estimate": estimate_figure, "check_figure": check_figure, "plot": interval_plot, "obtained": obtained, "by_group": by_group,
    }
    environment.globals |= {"three_digits": three_digits, "step_parts": step_parts}
    source = (importlib.resources.files("edgeexport.report") / TEMPLATE).read_text(encoding="utf-8")
    offered = [lane for lane in report.lanes if lane.variant is not None]
    return environment.from_string(source).render(
        report=report, offered=offered, refused=[lane for lane in report.lanes if lane.variant is None], where_all=where(report.scope),
        sentences=sentences(report), groups=groups(report), open_checks=open_checks(report), latency=latency_chart(offered),
        bars=size_bars(report), text_rows=text_rows(report.text), model_rows=model_rows(report.model),
        measured=[lane for lane in offered if lane.metrics], uncut=[lane for lane in offered if lane.untruncated],
        compression_rows=compression_rows(report.compression) if report.compression else [], search=search_chart(report.search),
        repairs=[lane for lane in report.lanes if lane.repair is not None],
        cut_shares=cut_shares(offered), same_uncut=all(lane.untruncated == lane.metrics for lane in offered))
