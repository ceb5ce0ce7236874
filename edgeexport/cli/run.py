"""`edgeexport run`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.bundle import ManifestLane, check_files, read_manifest
from edgeexport.cli.terminal import err, json_option, out, print_json
from edgeexport.errors import RuntimeUnavailable
from edgeexport.runner.local import run_lane
from edgeexport.session import Bundle
from edgeexport.session.agent import run_texts


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True)
@click.option("--lane", help="Which lane; default: the first whose runtime is installed here, else the first that can run.")
@click.option("--context", help="The text that holds the answer, for question answering; else the second text of a pair.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@json_option
def run_command(bundle: Path, texts: tuple[str, ...], lane: str | None, context: str | None, threads: int, as_json: bool) -> None:
    """Run a bundle on texts.

    Where the lane's runtime is not installed, it runs in the environment in which the lane was verified; that is made on first use.
    """
    opened = Bundle.open(bundle, lane=lane, threads=threads)
    manifest = read_manifest(opened.directory)
    check_files(opened.directory, manifest)
    try:
        name, results = opened.lane, run_texts(opened.session, list(texts), context)
    except RuntimeUnavailable:
        lanes = {lane: manifest.lanes[lane]} if lane else manifest.lanes
        name, results = run_in_environment(opened.directory, lanes, {"do": "texts", "texts": list(texts), "pair": context, "threads": threads})
    if as_json:
        print_json({"lane": name, "results": results})
        return
    err.print(f"[dim]lane {name}[/]")
    for result in results:
        if len(results) > 1:
            out.print(f"[bold]{escape(result['text'])}[/]")
        for message in result["warnings"]:
            err.print(f"[yellow]{escape(message)}[/]")
        out.print(shown(result["answer"]), markup=False)


def run_in_environment(place: Path, lanes: Mapping[str, ManifestLane], job: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The first of the lanes whose environment can be made, and its answers.

    Raises:
        RuntimeUnavailable: none can.
    """
    problem = RuntimeUnavailable("The bundle has no lane.")
    for name, lane in lanes.items():
        with tempfile.TemporaryDirectory(prefix="edgeexport-run-") as scratch, err.status(f"running in {lane.verified_by}") as status:
            try:
                return name, run_lane(place, lane, job, Path(scratch), status.update)["results"]
            except RuntimeUnavailable as exc:
                problem = exc
    raise problem


def shown(answer: Any) -> str:
    """An answer for a person: a vector by its beginning, classes and entities a line each."""
    if isinstance(answer, list) and answer and isinstance(answer[0], float):
        return f"[{', '.join(f'{value:.4f}' for value in answer[:6])}, …]  ({len(answer)} values)"
    if isinstance(answer, list) and answer and isinstance(answer[0], list):
        return "\n".join(shown(row) for row in answer)
    if isinstance(answer, list):
        return "\n".join(shown(item) for item in answer) or "nothing found"
    return "  ".join(f"{key}={value:.4f}" if isinstance(value, float) else f"{key}={value}" for key, value in answer.items())
