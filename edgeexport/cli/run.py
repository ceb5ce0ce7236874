"""`edgeexport run`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.bundle import Manifest, ManifestLane, check_files, read_manifest
from edgeexport.cli.chat import show
from edgeexport.cli.generation import generation_options, request_of, talker
from edgeexport.cli.terminal import err, json_option, out, print_json
from edgeexport.errors import RuntimeUnavailable
from edgeexport.runner.local import run_lane
from edgeexport.session import Bundle, Session
from edgeexport.session.agent import run_texts


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True)
@click.option("--lane", help="Which lane; default: the first whose runtime is installed here, else the first that can run.")
@click.option("--context", help="The text that holds the answer, for question answering; else the second text of a pair.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--raw", is_flag=True, help="Of a language model: go on with the text as it is, and don't take it for what a user says.")
@generation_options
@json_option
def run_command(bundle: Path, texts: tuple[str, ...], lane: str | None, context: str | None, threads: int, as_json: bool, raw: bool,
                **options: Any) -> None:
    """Run a bundle on texts; a language model answers each, or goes on with it where it has no chat template.

    Where the lane's runtime is not installed, it runs in the environment in which the lane was verified; that is made on first use.
    """
    opened = Bundle.open(bundle, lane=lane, threads=threads)
    manifest = read_manifest(opened.directory)
    check_files(opened.directory, manifest)
    if opened.payload.generation is not None:
        _generate(opened, manifest, texts, lane, threads, as_json, raw, options)
        return
    try:
        session = opened.session
        assert isinstance(session, Session)
        name, results = opened.lane, run_texts(session, list(texts), context)
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


def _generate(opened: Bundle, manifest: Manifest, texts: tuple[str, ...], lane: str | None, threads: int, as_json: bool, raw: bool,
              options: dict[str, Any]) -> None:
    """Have a language model answer texts, and show each answer as it comes."""
    results = []
    with talker(opened, manifest, lane, threads) as (name, model):
        if not as_json:
            err.print(f"[dim]lane {name}[/]")
        for text in texts:
            request = request_of({"prompt": text}, raw=raw, **dict(options))
            if as_json:
                events = list(model.answer(request))
                results.append({"text": text, "answer": "".join(event.get("piece", "") for event in events), **events[-1]["end"]})
            else:
                if len(texts) > 1:
                    out.print(f"[bold]{escape(text)}[/]")
                show(model, request)
    if as_json:
        print_json({"lane": name, "results": results})


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
