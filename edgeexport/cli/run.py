"""`edgeexport run`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.bundle import check_files, read_manifest
from edgeexport.cli.terminal import err, json_option, out, print_json
from edgeexport.errors import RuntimeUnavailable
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.session import Bundle
from edgeexport.session.agent import run_texts
from edgeexport.step import Context


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
    check_files(opened.directory, read_manifest(opened.directory))
    try:
        name, results = opened.lane, run_texts(opened.session, list(texts), context)
    except RuntimeUnavailable:
        name, results = run_in_environment(opened, [lane] if lane else list(opened.lanes), texts, context, threads)
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


def run_in_environment(bundle: Bundle, lanes: Sequence[str], texts: Sequence[str], pair: str | None,
                       threads: int) -> tuple[str, list[dict[str, Any]]]:
    """The first of the lanes whose environment can be made, and its answers.

    Raises:
        RuntimeUnavailable: none can.
    """
    problem = RuntimeUnavailable("The bundle has no lane.")
    for name in lanes:
        job = {"do": "texts", "payload": str(bundle.directory.absolute()), "variant": bundle.lanes[name]["variant"],
               "runtime": bundle.lanes[name]["runtime"], "threads": threads, "texts": list(texts), "pair": pair}
        try:
            return name, answers(Environment(bundle.lanes[name]["verified_by"]), job)
        except RuntimeUnavailable as exc:
            problem = exc
    raise problem


def answers(environment: Environment, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What an environment answers to a job's texts."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-run-") as scratch, err.status(f"running in {environment.stand_in}") as status:
        context = Context(Path(scratch), report=lambda fraction, message: status.update(message))
        results: list[dict[str, Any]] = run_job(environment, job, Path(scratch) / "out", context)["results"]
    return results


def shown(answer: Any) -> str:
    """An answer for a person: a vector by its beginning, classes and entities a line each."""
    if isinstance(answer, list) and answer and isinstance(answer[0], float):
        return f"[{', '.join(f'{value:.4f}' for value in answer[:6])}, …]  ({len(answer)} values)"
    if isinstance(answer, list) and answer and isinstance(answer[0], list):
        return "\n".join(shown(row) for row in answer)
    if isinstance(answer, list):
        return "\n".join(shown(item) for item in answer) or "nothing found"
    return "  ".join(f"{key}={value:.4f}" if isinstance(value, float) else f"{key}={value}" for key, value in answer.items())
