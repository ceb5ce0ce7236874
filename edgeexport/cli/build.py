"""`edgeexport build`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from edgeexport.build import Built, build
from edgeexport.cli.model_options import choose_recipe, model_options, tell_of_source
from edgeexport.cli.progress import show_progress
from edgeexport.cli.terminal import EXIT_CODES, json_option, megabytes, out, print_json, styled
from edgeexport.prepare import Prepared, prepare
from edgeexport.report.model import Report, interval_text
from edgeexport.runner import host
from edgeexport.schedule import Limits
from edgeexport.store import Store
from edgeexport.target import load_target
from edgeexport.verify.check import together
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import Repair


@click.command("build")
@model_options
@click.option("--jobs", "-j", type=click.IntRange(1), help="Steps at once; default: one per core, up to 4.")
@click.option("--memory-mb", type=click.IntRange(500), help="Memory for all steps together; default: 80 % of what is there.")
@click.option("--out", "-o", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path("bundles"), show_default=True,
              help="Where the bundles go.")
@click.option("--repair/--no-repair", default=True, show_default=True,
              help="Give layers that quantization harms a gentler precision, where a lane fails for them.")
@json_option
def build_command(model: str | None, targets: tuple[str, ...], recipe: Path | None, texts: Path | None, task: str | None,
                  max_length: int | None, trusted: bool, jobs: int | None, memory_mb: int | None, directory: Path, repair: bool,
                  as_json: bool) -> int:
    """Build a verified bundle for each target.

    MODEL is a hub id or a local checkpoint directory. Without it the recipe in the working directory is built, and without that the
    demo: help search with all-MiniLM-L6-v2.
    """
    profiles = [load_target(name) for name in dict.fromkeys(targets)]
    chosen = choose_recipe(model, recipe, task, max_length, announce=not as_json)
    limits = default_limits(jobs, memory_mb)
    store = Store()
    with store.in_use():  # from here on: preparing puts the data sets into the store
        prepared = prepare(chosen, profiles, store, texts, trusted=trusted)
        tell_of_source(prepared)
        with show_progress() as progress:
            built = build(prepared, directory, limits, progress.tell, repair=repair)
    if as_json:
        print_json({"bundles": [{"directory": str(b.directory), "archive": str(b.archive), "payload": b.manifest.payload,
                                 "report": b.report.model_dump(mode="json")} for b in built]})
    else:
        for each in built:
            show_built(each, prepared)
    return EXIT_CODES[together(each.report.verdict for each in built) or built[0].report.verdict]


def default_limits(jobs: int | None, memory_mb: int | None) -> Limits:
    """Limits for this machine, where the command line sets none."""
    return Limits(jobs=jobs or min(host.cores(), 4), cores=host.cores(), memory_mb=memory_mb or int(0.8 * host.memory_mb()))


def show_built(built: Built, prepared: Prepared) -> None:
    """Print what came out, for a person, at 80 columns."""
    from rich.table import Table

    report = built.report
    out.print()
    out.print(f"[bold]{report.name}[/] for [bold]{report.target}[/] ({report.target_title})")
    table = Table(box=None, pad_edge=False)
    for column in ("lane", "precision", "size", "parity", "metric", "verdict"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    for lane in report.lanes:
        if lane.variant is None:
            continue
        parity = next((check for check in lane.checks if check.group == "parity"), None)
        metric = (lane.untruncated or lane.metrics)[:1]
        table.add_row(lane.lane if lane.required else f"{lane.lane} (optional)", lane.precision, megabytes(lane.size_bytes),
                      f"{parity.figure.value:.4f}" if parity and isinstance(parity.figure, Estimate) else "",
                      f"{metric[0].lane.value:.3f} ({metric[0].reference.value:.3f})" if metric else "null", styled(lane.verdict))
    out.print(table)
    for lane in report.lanes:
        if lane.variant is None:
            out.print(f"{lane.lane}: [dim]not offered: {escape(lane.refusal or '')}[/]")
    for lane in report.lanes:
        for check in lane.checks:
            if check.verdict is not None and check.verdict.value != "pass":
                figure = interval_text(check.figure) if isinstance(check.figure, Estimate) else "" if check.figure is None else f"{check.figure:.4g}"
                bound = "" if check.bound is None else f" (must be {check.relation} {check.bound:g})"
                out.print(f"  {lane.lane}: {styled(check.verdict)} {check.name}: {figure}{bound} {escape(check.note or '')}", soft_wrap=False)
    for lane in report.lanes:
        if lane.repair is not None:
            show_repair(lane.lane, lane.repair)
        if lane.speed is not None and lane.speed.generation is not None:
            speed = lane.speed.generation
            out.print(f"  {lane.lane}: {speed.decode_tokens_per_second:.0f} tokens a second, first token of {speed.prompt_tokens} after "
                      f"{speed.first_token_ms:.0f} ms, {lane.speed.peak_rss_mb:.0f} MB with a full context; {lane.speed.threads} thread, this host",
                      soft_wrap=False)
    explain_columns(report)
    out.print(f"verdict: {styled(report.verdict)}[dim]{report.scope.removeprefix(report.verdict.value)}[/]")
    out.print(f"bundle:  {built.directory}/  and  {built.archive.name} ({megabytes(built.archive.stat().st_size)})", soft_wrap=True)
    out.print(f"report:  {built.directory / 'report.html'}", soft_wrap=True)


def show_repair(lane: str, repair: Repair) -> None:
    """Say which layers cost a lane its budget, and what mending it cost."""
    worst = ", ".join(escape(group.match) for group in repair.causes[:3])
    out.print(f"  {lane}: quantization harms {worst} most ({len(repair.causes)} parts measured)", soft_wrap=False)
    if repair.promoted:
        out.print(f"  {lane}: mended by a gentler precision for {len(repair.promoted)} of them: "
                  f"{megabytes(repair.size_before)} → {megabytes(repair.size_after)}, "
                  f"{repair.latency_before or 0:.1f} → {repair.latency_after or 0:.1f} ms at the longest length here", soft_wrap=False)
    elif repair.trials:
        out.print(f"  {lane}: no gentler precision of single layers keeps the margins on the calibration texts", soft_wrap=False)


def explain_columns(report: Report) -> None:
    """Say what stands in the columns ``parity`` and ``metric``."""
    lane = next((lane for lane in report.lanes if lane.checks), None)
    if lane is None:
        return
    parity = next((check.name for check in lane.checks if check.group == "parity"), None)
    metric = next((result.name for result in lane.untruncated or lane.metrics), None)
    parts = [f"parity: {parity}"] if parity else []
    parts.append(f"metric: {metric} (of the float32 original)" if metric else "metric: null, no labelled data")
    out.print(f"[dim]{'; '.join(parts)}[/]")
