"""`edgeexport run`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.cli.terminal import err, json_option, out, print_json
from edgeexport.session import Bundle, TruncationWarning


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True)
@click.option("--lane", help="Which lane; default: the first whose runtime is installed here.")
@click.option("--context", help="The text that holds the answer, for question answering; else the second text of a pair.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@json_option
def run_command(bundle: Path, texts: tuple[str, ...], lane: str | None, context: str | None, threads: int, as_json: bool) -> None:
    """Run a bundle on texts, in a runtime that is installed here."""
    opened = Bundle.open(bundle, lane=lane, threads=threads)
    results: list[dict[str, Any]] = []
    for text in texts:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TruncationWarning)
            answer = opened.run(text, context)
        cut = [str(warning.message) for warning in caught if warning.category is TruncationWarning]
        results.append({"text": text, "answer": answer.tolist() if hasattr(answer, "tolist") else answer, "warnings": cut})
    if as_json:
        print_json({"lane": opened.lane, "results": results})
        return
    err.print(f"[dim]lane {opened.lane}[/]")
    for result in results:
        out.print(f"[bold]{escape(result['text'])}[/]" if len(results) > 1 else "", end="\n" if len(results) > 1 else "", markup=True)
        for message in result["warnings"]:
            err.print(f"[yellow]{escape(message)}[/]")
        out.print(shown(result["answer"]), markup=False)


def shown(answer: Any) -> str:
    """An answer for a person: a vector by its beginning, classes and entities a line each."""
    if isinstance(answer, list) and answer and isinstance(answer[0], float):
        return f"[{', '.join(f'{value:.4f}' for value in answer[:6])}, …]  ({len(answer)} values)"
    if isinstance(answer, list) and answer and isinstance(answer[0], list):
        return "\n".join(shown(row) for row in answer)
    if isinstance(answer, list):
        return "\n".join(shown(item) for item in answer) or "nothing found"
    return "  ".join(f"{key}={value:.4f}" if isinstance(value, float) else f"{key}={value}" for key, value in answer.items())
