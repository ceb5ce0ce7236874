"""`edgeexport build` and `edgeexport plan`."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.build import Built, Prepared, build, prepare
from edgeexport.cli.progress import LineProgress, LiveProgress, Progress
from edgeexport.cli.terminal import EXIT_CODES, err, json_option, megabytes, out, print_json, styled
from edgeexport.errors import RecipeError
from edgeexport.recipe import RECIPE_FILE, ModelSection, Recipe, load_recipe, recipe_for
from edgeexport.report.model import Report, interval_text
from edgeexport.runner import host
from edgeexport.schedule import Limits, pending
from edgeexport.store import Store
from edgeexport.target import load_target
from edgeexport.toml_file import validated
from edgeexport.verify.check import together
from edgeexport.verify.intervals import Estimate

DEMO = "help_search"


trust_option = click.option("--trust-remote-code", "trusted", is_flag=True, help="Run code that the checkpoint brings along, with your rights.")


def model_options(command: Any) -> Any:
    """What build and plan have in common."""
    for option in reversed([
        click.argument("model", required=False),
        click.option("--target", "-t", "targets", multiple=True, required=True, metavar="T",
                     help="A target's name, or a file ./board.toml. May be given several times."),
        click.option("--recipe", type=click.Path(path_type=Path), help=f"A recipe; default: {RECIPE_FILE} here."),
        click.option("--texts", type=click.Path(path_type=Path), help="Texts of yours on which parity is measured too."),
        click.option("--task", help="The task, where the checkpoint does not say it."),
        click.option("--max-length", type=int, help="Longest text in tokens; default: the model's own."),
        trust_option,
    ]):
        command = option(command)
    return command


@click.command("build")
@model_options
@click.option("--jobs", "-j", type=click.IntRange(1), help="Steps at once; default: one per core, up to 4.")
@click.option("--memory-mb", type=click.IntRange(500), help="Memory for all steps together; default: 80 % of what is there.")
@click.option("--out", "-o", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path("bundles"), show_default=True,
              help="Where the bundles go.")
@json_option
def build_command(model: str | None, targets: tuple[str, ...], recipe: Path | None, texts: Path | None, task: str | None,
                  max_length: int | None, trusted: bool, jobs: int | None, memory_mb: int | None, directory: Path, as_json: bool) -> int:
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
        tell_offline(prepared)
        progress: Progress = LiveProgress(prepared.plan) if err.is_terminal and not os.environ.get("CI") else LineProgress()
        with progress:
            built = build(prepared, directory, limits, progress.tell)
    if as_json:
        print_json({"bundles": [{"directory": str(b.directory), "archive": str(b.archive), "payload": b.manifest.payload,
                                 "report": b.report.model_dump(mode="json")} for b in built]})
    else:
        for each in built:
            show_built(each, prepared)
    return EXIT_CODES[together(each.report.verdict for each in built) or built[0].report.verdict]


@click.command("plan")
@model_options
@json_option
def plan_command(model: str | None, targets: tuple[str, ...], recipe: Path | None, texts: Path | None, task: str | None,
                 max_length: int | None, trusted: bool, as_json: bool) -> int:
    """Show what a build would do, and what is stored already. Runs nothing."""
    from edgeexport.cli.plan_tree import plan_data, plan_tree

    profiles = [load_target(name) for name in dict.fromkeys(targets)]
    store = Store()
    prepared = prepare(choose_recipe(model, recipe, task, max_length, announce=not as_json), profiles, store, texts, trusted=trusted)
    tell_offline(prepared)
    found, missing = pending(prepared.plan, prepared.plan.wanted, store, verify=False)
    data = plan_data(prepared.plan, store, set(found), set(missing))
    if as_json:
        print_json(data)
    else:
        out.print(plan_tree(prepared.plan, data))
    return 0


def choose_recipe(model: str | None, path: Path | None, task: str | None, max_length: int | None, *, announce: bool) -> Recipe:
    """The recipe that the command line means: of a file, of a bare model, of the working directory, or the demo's.

    Raises:
        RecipeError: it is not valid.
    """
    sections = {key: value for key, value in (("task", task), ("max_length", max_length)) if value is not None}
    if path is None and model is None and Path(RECIPE_FILE).is_file():
        path = Path(RECIPE_FILE)
    if path is not None:
        recipe = load_recipe(path)
        if model is not None:
            sections["source"] = str(Path(model).absolute()) if Path(model).exists() else model
    elif model is not None:
        return recipe_for(model, model={"source": model, **sections})
    else:
        recipe = load_recipe(demo_recipe())
        if announce:
            err.print(f"No model and no {RECIPE_FILE} here: building the demo, help search with all-MiniLM-L6-v2.")
    if sections:
        section = validated(recipe.model.model_dump(exclude_none=True) | sections, ModelSection, RecipeError, "the command line")
        recipe = recipe.model_copy(update={"model": section})
    return recipe


def demo_recipe() -> Path:
    """The recipe of the demo that ships with the product."""
    return Path(str(importlib.resources.files("edgeexport.data"))) / DEMO / RECIPE_FILE


def default_limits(jobs: int | None, memory_mb: int | None) -> Limits:
    """Limits for this machine, where the command line sets none."""
    return Limits(jobs=jobs or min(host.cores(), 4), cores=host.cores(), memory_mb=memory_mb or int(0.8 * host.memory_mb()))


def tell_offline(prepared: Prepared) -> None:
    """Say so where the hub could not be asked for the newest revision."""
    resolved = prepared.resolved
    if resolved.source.offline:
        err.print(f"The hub can't be reached: taking {resolved.recipe.model.source} at {str(resolved.source.revision)[:12]}, fetched earlier.")


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
        table.add_row(lane.lane, lane.precision, megabytes(lane.size_bytes),
                      f"{parity.figure.value:.4f}" if parity and isinstance(parity.figure, Estimate) else "",
                      f"{metric[0].lane.value:.3f} ({metric[0].reference.value:.3f})" if metric else "null", styled(lane.verdict))
    out.print(table)
    for lane in report.lanes:
        if lane.variant is None:
            out.print(f"{lane.lane}: [dim]not offered: {escape(lane.refusal or '')}[/]")
    for lane in report.lanes:
        for check in lane.checks:
            if check.verdict is not None and check.verdict.value != "pass":
                figure = interval_text(check.figure) if isinstance(check.figure, Estimate) else check.figure
                out.print(f"  {lane.lane}: {styled(check.verdict)} {check.name}: {figure} (must be {check.relation} {check.bound}) "
                          f"{escape(check.note or '')}", soft_wrap=False)
    explain_columns(report)
    out.print(f"verdict: {styled(report.verdict)}[dim]{report.scope.removeprefix(report.verdict.value)}[/]")
    out.print(f"bundle:  {built.directory}/  and  {built.archive.name} ({megabytes(built.archive.stat().st_size)})", soft_wrap=True)
    out.print(f"report:  {built.directory / 'report.html'}", soft_wrap=True)


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
