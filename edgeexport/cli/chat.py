"""`edgeexport chat`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.bundle import check_files, read_manifest
from edgeexport.cli.generation import Talker, generation_options, request_of, talker
from edgeexport.cli.terminal import err
from edgeexport.errors import DataError, NoRoom
from edgeexport.session import Bundle

# What ended an answer that is not at its end.
CUT = {"tokens": "the answer is cut off: it may have no more tokens (--max-tokens)", "context": "the answer is cut off: the context is full"}
# Of the context, what an answer needs so that no earlier message has to go.
FAIR_SHARE = 4
END = ("/exit", "/quit", "/bye")


@click.command("chat")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--lane", help="Which lane; default: the first whose runtime is installed here, else the first that can run.")
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@generation_options
def chat_command(bundle: Path, lane: str | None, system: str | None, threads: int, **options: Any) -> None:
    """Talk with a language model of a bundle, by the chat template that is in it.

    /reset begins anew, /exit or Ctrl-D ends the conversation; Ctrl-C ends an answer, or takes back a line. What is piped in is answered line by line.
    """
    opened = Bundle.open(bundle, lane=lane, threads=threads)
    manifest = read_manifest(opened.directory)
    check_files(opened.directory, manifest)
    if opened.payload.require_generation().chat_template is None:
        raise DataError("This model has no chat template.", why="it goes on with a text, and was not trained on conversations",
                        hint=f'edgeexport run {bundle} "Once upon a time"')
    beginning = [{"role": "system", "content": system}] if system is not None else []
    with talker(opened, manifest, lane, threads) as (name, model):
        held = opened.payload.spec.max_length
        err.print(f"[dim]{manifest.name}, lane {name}, {threads} thread{'s' if threads > 1 else ''}; context {held:,} tokens; /reset, /exit[/]")
        messages: list[dict[str, str]] = []
        while (said := read_line()) is not None and said not in END:
            if said == "/reset":
                messages = []
                err.print("[dim]a new conversation[/]")
            elif said:
                messages.append({"role": "user", "content": said})
                messages = answer(model, beginning, messages, options, room=min(options["max_tokens"], held // FAIR_SHARE))


def read_line() -> str | None:
    """What the user says next; None where they have nothing more to say."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrows and history, where there is a terminal)
    if sys.stdin is None:
        return None
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            err.print("\n[dim]/exit or Ctrl-D ends[/]")


def answer(model: Talker, beginning: list[dict[str, str]], messages: list[dict[str, str]], options: dict[str, Any], *,
           room: int) -> list[dict[str, str]]:
    """Show the answer as it comes, and return the conversation with it; what leaves no room for so many tokens is left out of that, oldest first."""
    while True:
        try:
            request = request_of({"messages": beginning + messages}, **dict(options)) | {"room": room if len(messages) > 1 else 1}
            said, figures = show(model, request, interruptible=True)
            break
        except NoRoom as exc:
            if len(messages) < 2:
                err.print(f"[yellow]{escape(exc.what)} It is left out.[/]")
                return []
            err.print("[yellow]the conversation is longer than the context: its first messages are left out[/]")
            messages = messages[2:]
    if figures:
        after_first = figures["seconds"] - figures["first_token_seconds"]
        rate = f", {(figures['tokens'] - 1) / after_first:.0f} a second" if figures["tokens"] > 1 and after_first > 0 else ""
        err.print(f"[dim]{figures['read_tokens']:,} tokens read, first token after {figures['first_token_seconds']:.2f} s, "
                  f"{figures['tokens']} tokens{rate}[/]")
    return [*messages, {"role": "assistant", "content": said}]


def show(model: Talker, request: dict[str, Any], *, interruptible: bool = False) -> tuple[str, dict[str, Any]]:
    """Print the pieces of an answer; what was said, and what it took, which is empty where Ctrl-C ended it."""
    said = ""
    events = model.answer(request)
    try:
        for event in events:
            if "end" in event:
                click.echo()
                if event["end"]["ended"] in CUT:
                    err.print(f"[yellow]{CUT[event['end']['ended']]}[/]")
                return said, event["end"]
            said += event["piece"]
            click.echo(event["piece"], nl=False)
    except KeyboardInterrupt:
        click.echo()
        if not interruptible:
            raise
    finally:
        events.close()
    return said, {}
