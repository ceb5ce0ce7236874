"""The report as a page: one self-contained file that asks for nothing from anywhere.

The template draws; what is a sentence or a row of a table is worked out here.
"""

from __future__ import annotations

import importlib.resources
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from edgeexport.report.charts import interval_plot, latency_chart, search_chart, size_bars
from edgeexport.report.model import CompressionReport, Report
from edgeexport.report.numbers import NBSP, amount, check_figure, estimate_figure, fixed, megabytes, percent, plain, three_digits, unit
from edgeexport.verify.check import Check, Verdict, together
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport

TEMPLATE = "report.html.jinja"
NOT_MEASURED = "not measured"

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
        rows.append(("squared error of the hidden states, when fitted", " → ".join(map(percent, found.reconstruction))))
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
