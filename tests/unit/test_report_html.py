"""The report as a page: what it says, that it asks for nothing, and that its plots show on which side of the bound a figure lies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from edgeexport.report.charts import interval_plot, latency_chart
from edgeexport.report.html import render_html, where
from edgeexport.report.model import (
    CandidateReport,
    CompressionReport,
    DatasetReport,
    FitReport,
    Report,
    ScoutReport,
    SearchReport,
    StepReport,
    TimedReport,
)
from edgeexport.report.numbers import amount, check_figure, fixed, plain
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport, SpeedReport
from edgeexport.verify.metrics import MetricResult

WHERE = "host x86-64; not run on aarch64"
HOW = "measured on this host x86-64 in runtime==1.0"
VOID = {"meta", "link", "br", "img", "hr", "input"}


# --- reports -------------------------------------------------------------------------------------------------------------------------


def estimate(value: float, low: float, high: float, n: int = 600) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=n, method="order statistics")


def cosine(value: float, low: float, high: float, verdict: Verdict) -> Check:
    return Check(name="cosine, 5th percentile (probes)", group="parity", verdict=verdict, figure=estimate(value, low, high), bound=0.97,
                 how=HOW)


def drop(value: float, low: float, high: float, verdict: Verdict) -> Check:
    return Check(name="drop of recall@1", group="task metric", verdict=verdict, figure=estimate(value, low, high), bound=0.02,
                 relation="<=", how=HOW, note="9 answers broken, 8 fixed")


def metric(value: float = 0.7196, broken: int = 9) -> MetricResult:
    return MetricResult(name="recall@1", reference=estimate(0.7207, 0.6870, 0.7533, 920), lane=estimate(value, 0.6859, 0.7522, 920),
                        drop=estimate(0.7207 - value, -0.0076, 0.0098, 920), broken=broken, fixed=8)


MEMORY = Check(name="peak memory", group="budget", verdict=Verdict.PASS, figure=114.777, bound=700.0, relation="<=", unit="MB", how=HOW)
AUDIT = Check(name="runtime can run it", group="audit", verdict=Verdict.PASS, how="operator versions of runtime==1.0")


def lane(name: str = "litert", verdict: Verdict = Verdict.PASS, **changes: Any) -> LaneReport:
    fields: dict[str, Any] = {
        "lane": name, "format": "tflite", "runtime": "ai-edge-litert", "runtime_version": ">=2.1", "verified_by": "ai-edge-litert==2.3.0",
        "required": True, "variant": "tflite-dynamic-int8", "precision": "dynamic-int8", "verdict": verdict,
        "scope": f"{verdict} ({WHERE}); parity: {verdict}",
        "checks": (cosine(0.9954, 0.9945, 0.9964, Verdict.PASS), drop(0.0011, -0.0076, 0.0098, Verdict.PASS), MEMORY, AUDIT),
        "metrics": (metric(),), "size_bytes": 24_632_648, "size_ratio": 0.27112, "truncated": {"probes": 0.1133, "evaluation": 0.0},
        "largest_difference": 0.02525, "golden_tolerance": 0.136, "compute": {"integer_weight_share": 0.99, "integer_compute_share": 0.75},
        "speed": SpeedReport(load_seconds=0.068, latency_ms={16: {"p50": 1.336, "p95": 1.434}, 128: {"p50": 6.447, "p95": 6.546}},
                             peak_rss_mb=114.777, threads=1, rounds=15, how=HOW),
    }
    return LaneReport(**(fields | changes))


def report(*lanes: LaneReport, **changes: Any) -> Report:
    verdict = changes.get("verdict", Verdict.PASS)
    fields: dict[str, Any] = {
        "name": "help-search", "target": "raspberrypi", "target_title": "Raspberry Pi 4 Model B", "isa": "aarch64",
        "host": "host x86-64, AMD EPYC", "verdict": verdict, "scope": f"{verdict} ({WHERE}); parity: {verdict}",
        "model": {"source": "org/model", "revision": None, "task": "sentence-similarity", "architecture": "bert", "parameters": 22_713_216,
                  "licence": "apache-2.0", "labels": [], "float32_bytes": 90_852_864},
        "text": {"max_length": 128, "own_max_length": 256, "pad_id": 0, "inputs": ["input_ids", "attention_mask"], "pooling": "mean",
                 "normalize": True, "query_prefix": "query: ", "sources": {"max_length": "recipe", "pooling": "1_Pooling/config.json"}},
        "datasets": (DatasetReport(name="probes", rows=1600, labelled=False, origin="the probe set", digest="ab" * 32),),
        "lanes": lanes or (lane(),),
        "steps": (StepReport(id="export_onnx", stored=False, seconds=12.34, peak_rss_mb=812.4, bytes=90_000_000),
                  StepReport(id="assemble_payload[onnx]", stored=True, seconds=0.012, peak_rss_mb=None, bytes=23_000_000)),
    }
    return Report(**(fields | changes))


REFUSED = LaneReport(lane="micro", format="tflite", runtime="tflite-micro", runtime_version=">=1", verified_by="tflite-micro==1",
                     required=False, refusal="BATCH_MATMUL is not in tflite-micro", scope="not offered")


# --- reading a page ------------------------------------------------------------------------------------------------------------------


@dataclass
class Element:
    """An element of a page: its tag, attributes and children, of which some are text."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def all(self, tag: str | None = None, name: str | None = None) -> Iterator[Element]:
        """The elements inside with a tag and a class, where given."""
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and (name is None or name in (child.attributes.get("class") or "").split()):
                    yield child
                yield from child.all(tag, name)

    def id(self, wanted: str) -> Element:
        """The element with an id."""
        return next(element for element in self.all() if element.attributes.get("id") == wanted)

    def text(self) -> str:
        """What a person reads, blanks collapsed."""
        return re.sub(r"\s+", " ", "".join(self._texts())).strip()

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            elif child.tag != "style":
                yield " "
                yield from child._texts()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Element:
    """The page as a tree; every element must be closed in its place."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is never closed"
    return reader.root


def shown(found: Report) -> Element:
    return read(render_html(found))


def percent_of(value: str | None) -> float:
    assert value is not None and value.endswith("%")
    return float(value.removesuffix("%"))


# --- the page ------------------------------------------------------------------------------------------------------------------------

FAILING = lane("onnx", Verdict.FAIL, checks=(cosine(0.93, 0.92, 0.94, Verdict.FAIL),))
UNSURE = lane("litert", Verdict.INCONCLUSIVE, checks=(drop(0.015, 0.004, 0.026, Verdict.INCONCLUSIVE),))
UNLABELLED = lane(metrics=(), checks=(cosine(0.99, 0.98, 0.995, Verdict.PASS),
                                      Check(name="task metric", group="task metric", verdict=None, note="no labelled data")))
BARE = lane(speed=None, size_bytes=None, size_ratio=None, metrics=(), checks=(AUDIT,), truncated={}, compute={}, largest_difference=None,
            golden_tolerance=None)
VARIATIONS = {
    "plain": report(),
    "fail": report(FAILING, UNSURE, REFUSED, verdict=Verdict.FAIL),
    "inconclusive": report(UNSURE, verdict=Verdict.INCONCLUSIVE),
    "unlabelled": report(UNLABELLED),
    "bare": report(BARE, datasets=(), steps=(), model={"source": "x", "licence": None}, text={"max_length": 8, "own_max_length": 8}),
    "nothing offered": report(REFUSED, verdict=Verdict.INCONCLUSIVE, scope="not offered"),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_page_is_whole_and_asks_for_nothing(name: str) -> None:
    page = render_html(VARIATIONS[name])
    tree = read(page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|\bsrc=|\bon\w+=", page)
    for element in tree.all():
        link = element.attributes.get("href")
        if link is not None and link.startswith("#"):
            assert tree.id(link[1:])
        else:
            assert link in (None, "data:,")


@pytest.mark.parametrize("name", ["plain", "fail", "inconclusive", "unlabelled", "bare"])
def test_every_verdict_of_a_lane_says_where_it_was_reached(name: str) -> None:
    tree = shown(VARIATIONS[name])
    assert f"Measured on {WHERE}." in tree.id("verdict").text()
    for place in [*tree.all("article", "card"), *tree.all(None, "lane-checks")]:
        assert f"({WHERE})" in next(place.all("header")).text()


def test_on_the_targets_own_instruction_set_nothing_is_not_run() -> None:
    own = lane(scope="pass (host x86-64); parity: pass")
    text = shown(report(own, isa="x86_64", scope=own.scope)).text()
    assert "Measured on host x86-64." in text
    assert "not run" not in text


def test_where() -> None:
    assert where(f"pass ({WHERE}); parity: pass") == WHERE
    assert where(f"fail ({WHERE})") == WHERE
    assert where("something else") == "something else"


def test_sections_come_in_order() -> None:
    assert [section.attributes["id"] for section in shown(report()).all("section")] == [
        "lanes", "checks", "metric", "speed", "text", "data", "model", "steps", "host"]


def test_a_lanes_card() -> None:
    text = next(shown(report()).all("article", "card")).text()
    for expected in ("dynamic-int8", "ai-edge-litert >=2.1", "ai-edge-litert==2.3.0", "24.6 MB", "0.271× float32",
                     "0.9954 [0.9945, 0.9964]", "0.720 recall@1, original 0.721",
                     "9 answers broken, 8 fixed", "128 6.45 6.55", "115 MB", "pass"):
        assert expected in text, expected


def test_failures_are_named_first() -> None:
    panel = shown(VARIATIONS["fail"]).id("verdict").text()
    assert panel.startswith("fail")
    assert "Lane onnx fails 1 of 1 checks: “cosine, 5th percentile (probes)”." in panel
    assert "Lane litert is inconclusive in 1 of 1 checks: “drop of recall@1”." in panel
    assert "keeps its bound" not in panel


def test_nothing_checked_is_not_praised() -> None:
    empty = lane(verdict=Verdict.INCONCLUSIVE, checks=(Check(name="task metric", group="task metric", verdict=None),))
    panel = shown(report(empty, verdict=Verdict.INCONCLUSIVE)).id("verdict").text()
    assert "No check reached a verdict." in panel
    assert "keeps its bound" not in panel


def test_optional_lane_that_fails_does_not_decide() -> None:
    optional = FAILING.model_copy(update={"required": False})
    panel = shown(report(lane(), optional)).id("verdict").text()
    assert panel.startswith("pass")
    assert "in the lane," in panel
    assert "The optional lane onnx does not count; its verdict is fail." in panel


def test_refused_lane_has_its_reason_and_no_verdict() -> None:
    tree = shown(report(lane(), REFUSED))
    refused = next(tree.all("ul", "refused"))
    assert "micro" in refused.text() and "not offered" in refused.text() and "BATCH_MATMUL is not in tflite-micro" in refused.text()
    assert not list(refused.all(None, "badge"))
    assert len(list(tree.all("article", "card"))) == 1


def test_without_labelled_data() -> None:
    tree = shown(VARIATIONS["unlabelled"])
    assert "not measured" in tree.id("metric").text() and "no labelled data" in tree.id("metric").text()
    assert "Without a verdict: task metric: no labelled data." in tree.id("verdict").text()


def test_not_measured_is_never_zero() -> None:
    tree = shown(VARIATIONS["bare"])
    card = next(tree.all("article", "card")).text()
    for row in ("size", "parity", "task metric", "latency", "peak memory"):
        assert f"{row} not measured" in card
    assert not re.search(r"(?<![.\d])0(?![.\d])", card.replace("2.3.0", "")) and not re.search(r"\d", tree.id("speed").text())
    steps = shown(report()).id("steps").text()
    assert "assemble_payload onnx <0.1 not measured 23.00 stored" in steps
    assert "export_onnx 12.3 812 90.00 run" in steps


def test_uncut_original() -> None:
    same = shown(report(lane(untruncated=(metric(),)))).id("metric").text()
    assert "after 128 tokens, the checkpoint itself after 256" in same
    assert "probes 11.3 %, evaluation 0 %" in same
    assert "Here its figures are the ones above." in same and same.count("0.720") == 1
    other = shown(report(lane(untruncated=(metric(0.7012, broken=31),)))).id("metric").text()
    assert "Here its figures" not in other
    assert other.index("0.701") < other.index("0.720")  # what decides comes first
    assert other.count("decides") == 1


def test_settings_have_their_sources() -> None:
    text = shown(report()).id("text").text()
    assert "max_length 128 recipe" in text
    assert "pooling mean 1_Pooling/config.json" in text
    assert "“query: ”" in text
    assert "normalize yes" in text


def test_model_data_and_host() -> None:
    tree = shown(report())
    assert "22,713,216" in tree.id("model").text() and "apache-2.0" in tree.id("model").text()
    assert f"probes 1,600 no the probe set {'ab' * 32}" in tree.id("data").text()
    assert "host x86-64, AMD EPYC" in tree.id("host").text()
    assert "not stated" in shown(VARIATIONS["bare"]).id("model").text()


def test_names_are_escaped() -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=y>"
    check = cosine(0.99, 0.98, 0.995, Verdict.PASS).model_copy(update={"name": evil, "note": evil, "how": evil})
    refused = REFUSED.model_copy(update={"lane": evil, "refusal": evil})
    found = report(lane(evil, checks=(check,), note=evil), refused, name=evil, target=evil, target_title=evil, host=evil,
                   scope=f"pass ({evil})", model={"source": evil, evil: evil},
                   text={"max_length": 1, "own_max_length": 1, evil: evil, "sources": {evil: evil}},
                   datasets=(DatasetReport(name=evil, rows=1, labelled=True, origin=evil, digest=evil),),
                   steps=(StepReport(id=f"{evil}[{evil}]", stored=True, seconds=1, peak_rss_mb=1, bytes=1),))
    tree = shown(found)
    assert not list(tree.all("script")) and not list(tree.all("img"))
    assert all(not name.startswith("on") for element in tree.all() for name in element.attributes)
    assert next(tree.all("h1")).text() == evil


# --- plots ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check, side", [
    (cosine(0.9954, 0.9945, 0.9964, Verdict.PASS), "right"),
    (cosine(0.9702, 0.97005, 0.9704, Verdict.PASS), "right"),
    (cosine(0.20, 0.15, 0.25, Verdict.FAIL), "left"),
    (cosine(0.9698, 0.9695, 0.9703, Verdict.INCONCLUSIVE), "both"),
    (drop(-0.003, -0.009, 0.002, Verdict.PASS), "right"),
    (drop(0.09, 0.05, 0.13, Verdict.FAIL), "left"),
    (drop(0.015, 0.004, 0.026, Verdict.INCONCLUSIVE), "both"),
])
def test_plot_shows_the_verdict(check: Check, side: str) -> None:
    """The bound is in the middle; what keeps it is right of it, far enough for the eye, and all of it is inside."""
    svg = next(shown(report(lane(checks=(check,)))).all("svg", "interval"))
    bound = next(svg.all("line", "bound"))
    assert bound.attributes["x1"] == bound.attributes["x2"] == "50%"
    whisker = next(svg.all("line", "whisker"))
    low, high = percent_of(whisker.attributes["x1"]), percent_of(whisker.attributes["x2"])
    dot = percent_of(next(svg.all("circle", "dot")).attributes["cx"])
    assert 0 <= low <= dot <= high <= 100
    assert {"left": high < 49, "right": low > 51, "both": low < 45 and high > 55}[side]
    assert check.verdict in (svg.attributes["class"] or "").split()


def test_plot_is_linear_between_its_numbers() -> None:
    plot = interval_plot(cosine(0.985, 0.98, 0.99, Verdict.PASS))
    assert plot is not None
    assert plot.ends == ("0.94", "1") and plot.bound == "0.97" and plot.edge == 100
    assert plot.dot == pytest.approx(75)  # 0.985 is halfway between 0.97 and 1
    assert plot.low == pytest.approx(200 / 3) and plot.high == pytest.approx(250 / 3)


def test_plot_ends_where_the_figure_does() -> None:
    """No number above 1 for a share, however far below the bound it lies."""
    plot = interval_plot(cosine(0.93, 0.92, 0.94, Verdict.FAIL))
    assert plot is not None
    assert plot.ends == ("0.91", "1") and plot.edge == pytest.approx(50 + 50 * 0.03 / 0.06)


def test_plot_of_an_amount_has_zero_at_the_right() -> None:
    plot = interval_plot(MEMORY)
    assert plot is not None and plot.low is None
    assert plot.ends == ("1,400", "0")
    assert plot.dot == pytest.approx(50 + 50 * (700 - 114.777) / 700)


@pytest.mark.parametrize("figure", [estimate(math.inf, 0.1, math.inf), math.inf, math.nan])
def test_plot_of_what_is_not_finite(figure: Estimate | float) -> None:
    check = Check(name="logit error", group="parity", verdict=Verdict.FAIL, figure=figure, bound=0.5, relation="<=")
    expected = "undefined" if isinstance(figure, float) and math.isnan(figure) else "∞"
    assert expected in shown(report(lane(checks=(check,)))).id("checks").text()


def test_no_plot_without_a_figure_or_a_bound() -> None:
    tree = shown(report(lane(checks=(AUDIT, Check(name="latency", group="budget", verdict=None, bound=50.0, relation="<=", unit="ms")))))
    assert not list(tree.all("svg", "interval"))
    assert "not measured ≤ 50 ms" in tree.id("checks").text()


def test_latency_chart_is_logarithmic_and_names_do_not_overlap() -> None:
    latency = {16: {"p50": 2.0, "p95": 2.1}, 64: {"p50": 6.5, "p95": 6.6}}
    near = lane("b", speed=SpeedReport(load_seconds=1, latency_ms=latency, peak_rss_mb=1, threads=1, rounds=1, how=HOW))
    chart = latency_chart([lane("a"), near, lane("c", speed=None)])
    assert chart is not None
    assert [curve.lane for curve in chart.curves] in (["a", "b"], ["b", "a"])
    assert [text for _, text in chart.x_ticks] == ["16", "64", "128"]
    assert chart.x_ticks[1][0] == pytest.approx(200 / 3)  # 64 is two of the three doublings from 16 to 128
    assert [text for _, text in chart.y_ticks] == ["1", "2", "5", "10"]
    a = next(curve for curve in chart.curves if curve.lane == "a")
    assert a.points[0].y == pytest.approx(100 * (1 - math.log10(1.336)))
    places = sorted(curve.label_y for curve in chart.curves)
    assert places[1] - places[0] >= 8
    assert latency_chart([lane(speed=None)]) is None


def test_size_bars_are_in_proportion() -> None:
    tree = shown(report())
    widths = [percent_of(rect.attributes["width"]) for rect in tree.id("speed").all("rect") if rect.attributes.get("class") != "bed"]
    assert widths == [100, pytest.approx(100 * 24_632_648 / 90_852_864, abs=0.01)]


# --- numbers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, decimals, text", [
    (0.0, 1, "0.0"), (0.012, 1, "<0.1"), (-0.0004, 3, ">−0.001"), (-0.5, 1, "−0.5"), (1234.4, 0, "1,234"), (1e-17, 3, "0.000"),
    (math.inf, 2, "∞"),
])
def test_fixed(value: float, decimals: int, text: str) -> None:
    assert fixed(value, decimals) == text


@pytest.mark.parametrize("value, text", [(0.97, "0.97"), (700.0, "700"), (0.3, "0.3"), (1400.0, "1,400"), (-0.012, "−0.012"), (0.0, "0")])
def test_plain(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize("value, text", [(143.3, "143"), (91.89, "91.9"), (6.447, "6.45"), (0.0399, "0.0399"), (0.0, "0")])
def test_amount(value: float, text: str) -> None:
    assert amount(value) == text


def test_rounding_never_lands_on_the_bound() -> None:
    """A share that misses 0.97 by little must not read as 0.970."""
    figure = check_figure(cosine(0.96996, 0.9652, 0.9741, Verdict.INCONCLUSIVE))
    assert figure is not None and figure.value == "0.96996"
    over = check_figure(Check(name="size", group="budget", verdict=Verdict.FAIL, figure=0.30004, bound=0.3, relation="<=", unit="x"))
    assert over is not None and over.value == "0.30004"
    exact = check_figure(cosine(0.97, 0.96, 0.98, Verdict.INCONCLUSIVE))
    assert exact is not None and exact.value == "0.970"


# --- smaller models ------------------------------------------------------------------------------------------------------------------


def candidate(title: str, size_mb: float, quality: float, **marks: Any) -> CandidateReport:
    fields: dict[str, Any] = {"title": title, "size_bytes": int(size_mb * 1e6), "latency_ms": 3.0, "speedup": 2.5,
                              "metric": estimate(quality, quality - 0.05, quality + 0.05), "distance": 0.04,
                              "front": True, "chosen": False, "misses": ()}
    return CandidateReport(**(fields | marks))


SEARCH = SearchReport(
    candidates=(candidate("INT8 alone", 24.0, 0.73, misses=("litert: 24.0 MB, more than 11.4",)), candidate("width 0.35", 17.0, 0.65, front=False),
                candidate("3 layers, 3 epochs", 11.0, 0.707), candidate("3 layers, 19 epochs", 11.0, 0.712, chosen=True)),
    fits=(FitReport(title="rank 152", distance=0.0871), FitReport(title="rank 232, width 0.77", distance=0.0662)),
    timed=TimedReport(title="width 0.4", speedup=2.25),
    scouts=(ScoutReport(title="3 layers, 3 epochs", loss=0.1119), ScoutReport(title="6 layers, 3 epochs", loss=0.1128)),
    reference=estimate(0.736, 0.69, 0.78))
SMALLER = CompressionReport(parameters=(22_713_216, 10_206_928), vocabulary=(30_522, 16_079), layers=(6, 3), heads=(2, 11, 12))


def test_a_search_shows_every_candidate_once_and_what_was_trained_to_choose() -> None:
    page = shown(report(search=SEARCH))
    section = page.id("search")
    groups = [group for group in section.all("g") if "candidate" in (group.attributes.get("class") or "")]
    assert [str(group.attributes["class"]).split()[-1] for group in groups] == ["front", "beaten", "front", "chosen"]
    places = [(percent_of(circle.attributes["cx"]), percent_of(circle.attributes["cy"]))
              for group in groups for circle in list(group.all("circle"))[-1:]]
    assert places[0][0] > places[1][0] > places[2][0] == places[3][0]  # the larger, the further right
    assert places[1][1] > places[0][1]  # the better, the higher
    rows = [row.text() for row in section.all("tr")]
    assert sum("(built)" in row for row in rows) == 1 and any("24.0 MB, more than 11.4" in row for row in rows)
    assert any("6 layers, 3 epochs" in row and "0.1128" in row for row in rows)
    assert any("rank 232, width 0.77" in row and "0.066" in row for row in rows)
    assert "width 0.4 is 2.2 times as fast as float32" in " ".join(section.text().split())
    # Two points in one place: their numbers stand side by side.
    shifts = [float(str(text.attributes["dx"])) for group in groups for text in group.all("text")]
    assert shifts[3] >= shifts[2] + 10 and shifts[0] == shifts[1] == shifts[2]


def test_the_contents_name_what_is_there() -> None:
    links = [link.attributes["href"] for link in shown(report(search=SEARCH, compression=SMALLER)).all("a")]
    assert {"#compression", "#search"} <= set(links)
    plain_links = {link.attributes["href"] for link in shown(report()).all("a")}
    assert not {"#compression", "#search", "#repairs"} & plain_links


def test_parity_of_a_smaller_model_is_with_the_smaller_one() -> None:
    assert "nearness to the smaller model" in shown(report(compression=SMALLER)).id("lanes").text()
    assert "nearness to the original" in shown(report()).id("lanes").text()
