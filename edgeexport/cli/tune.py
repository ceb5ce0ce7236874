"""`edgeexport tune`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from edgeexport.build import build
from edgeexport.candidates import Trial, Wish
from edgeexport.cli.build import default_limits, show_built
from edgeexport.cli.model_options import choose_recipe, model_options, tell_of_source
from edgeexport.cli.progress import show_progress
from edgeexport.cli.terminal import EXIT_CODES, err, json_option, megabytes, out, print_json
from edgeexport.errors import EXIT_FAIL, UnknownName
from edgeexport.policy import PRESETS
from edgeexport.prepare import prepare
from edgeexport.report.model import SearchReport, interval_text
from edgeexport.store import Store
from edgeexport.target import load_target
from edgeexport.tune import Search, on_development, write_recipe
from edgeexport.verify.check import together
from edgeexport.workbench import Workbench


class Speedup(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A factor for all lanes, or ``LANE=FACTOR`` for one."""

    name = "speedup"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, float]:
        """Lane, None for all, and factor."""
        lane, _, factor = value.rpartition("=")
        try:
            return lane or None, click.FloatRange(min=0, min_open=True)(factor, param, ctx)
        except click.BadParameter:
            self.fail(f"'{value}' is no factor: give one above 0, such as 2.5 or litert=2.5.", param, ctx)


@click.command("tune")
@model_options
@click.option("--max-size-mb", type=click.FloatRange(min=0, min_open=True), help="Largest file of a lane, in MB.")
@click.option("--max-drop", type=click.FloatRange(0, 1), default=0.02, show_default=True,
              help="Largest loss of the task metric on the development data, as a share; 0.02 is 2 points.")
@click.option("speedups", "--min-speedup", type=Speedup(), multiple=True, metavar="[LANE=]FACTOR",
              help="Least speed of each lane against its float32 form, at the shortest and the longest length; LANE= for one lane alone.")
@click.option("presets", "--precision", type=click.Choice(sorted(set().union(*PRESETS.values()) - {"float32"})), multiple=True,
              help="Try this precision too, in each lane that has it, and take for each the one that serves it best; repeatable.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True, help="Time for search and training.")
@click.option("--jobs", "-j", type=click.IntRange(1), help="Steps at once; default: one per core, up to 4.")
@click.option("--memory-mb", type=click.IntRange(500), help="Memory for all steps together; default: 80 % of what is there.")
@click.option("--out", "-o", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path("bundles"), show_default=True,
              help="Where the winner's bundle goes, and its recipe.")
@json_option
def tune_command(model: str | None, targets: tuple[str, ...], recipe: Path | None, texts: Path | None, task: str | None, max_length: int | None,
                 trusted: bool, max_size_mb: float | None, max_drop: float, speedups: tuple[tuple[str | None, float], ...],
                 presets: tuple[str, ...], minutes: float, jobs: int | None, memory_mb: int | None, directory: Path, as_json: bool) -> int:
    """Search for a smaller and faster model that is still good enough.

    Candidates (a smaller table of tokens, fewer layers, heads and neurons, trained towards the original) are chosen on the recipe's
    development data. The winner becomes a recipe, and is built and judged on the evaluation data, once.
    """
    profiles = [load_target(name) for name in dict.fromkeys(targets)]
    lanes = {lane.name for profile in profiles for lane in profile.lanes}
    for lane, _ in speedups:
        if lane is not None and lane not in lanes:
            raise UnknownName.among("lane", lane, lanes)
    chosen = choose_recipe(model, recipe, task, max_length, announce=not as_json)
    limits = default_limits(jobs, memory_mb)
    store = Store()
    with store.in_use():
        prepared = prepare(chosen, profiles, store, texts, trusted=trusted)
        tell_of_source(prepared)
        wish = Wish(max_size_mb=max_size_mb, max_drop=max_drop, min_speedup=dict(speedups).get(None), minutes=minutes,
                    lane_speedups={lane: factor for lane, factor in speedups if lane is not None})
        with show_progress() as progress:
            bench = Workbench(on_development(prepared), limits, progress.tell, needed_lanes=wish.lane_speedups)
            search = Search(bench, wish, announce=lambda trial: err.print(trial_line(trial)), presets=tuple(dict.fromkeys(presets)))
            best = search.run()
            final = prepared.planned_anew(bench.recipe(best.candidate))
            found = search.report(best)
            built = build(final, directory, limits, progress.tell, search=found)
    missed = search.missed(best, [each.report for each in built])
    path = directory / f"{chosen.name}-tuned.toml"
    write_recipe(final.resolved.recipe, path)
    if as_json:
        print_json({"recipe": str(path), "best": best.model_dump(mode="json"), "trials": [trial.model_dump(mode="json") for trial in search.trials],
                    "search": found.model_dump(mode="json"), "missed": missed,
                    "bundles": [{"directory": str(b.directory), "report": b.report.model_dump(mode="json")} for b in built]})
    else:
        show_trials(found)
        for each in built:
            show_built(each, final)
        out.print(f"recipe:  {path}", soft_wrap=True)
        for refused in bench.refused:
            out.print(f"[dim]not tried: {escape(refused)}[/]")
        for words in missed:
            out.print(f"[yellow]not reached:[/] {words}")
    return EXIT_FAIL if missed else EXIT_CODES[together(each.report.verdict for each in built) or built[0].report.verdict]


def trial_line(trial: Trial) -> str:
    """What a candidate came to, in a line."""
    return (f"[bold]{trial.candidate.title}[/]: {megabytes(trial.size)}, {trial.quality:.3f} on the development data, {trial.latency:.1f} ms"
            + ("" if trial.misses else ", [green]fulfils the wish[/]"))


def show_trials(search: SearchReport) -> None:
    """The candidates as a table, those that no other beats marked."""
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate")
    for column in ("size", "ms", "speed", "metric (95 %)", "distance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in search.candidates:
        table.add_row(each.title, megabytes(each.size_bytes), f"{each.latency_ms:.1f}", f"{each.speedup:.1f}x", interval_text(each.metric, 3),
                      f"{each.distance:.3f}", "best" if each.chosen else "Pareto" if each.front else "")
    out.print()
    out.print(table)
    for fit in search.fits:
        out.print(f"[dim]fitted to choose: {fit.title}: distance {fit.distance:.3f}[/]")
    if search.timed:
        out.print(f"[dim]timed to choose: {search.timed.title}: {search.timed.speedup:.1f}x[/]")
    for scout in search.scouts:
        out.print(f"[dim]trained to choose: {scout.title}: loss {scout.loss:.4f}[/]")
    out.print(f"[dim]on the development data, worst lane; the float32 original: {search.reference.value:.3f}[/]")
