"""What `run` and `chat` have in common: how a language model of a bundle is asked, and its answer shown as it comes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import click

from edgeexport.bundle import Manifest
from edgeexport.cli.terminal import err
from edgeexport.errors import RuntimeUnavailable
from edgeexport.runner.talk import TalkingLane
from edgeexport.session import Bundle
from edgeexport.session.generation_jobs import answer_request
from edgeexport.session.language_model import LanguageModel

DEFAULT_TOKENS = 256


class Talker(Protocol):
    """Answers requests; see :func:`edgeexport.session.generation_jobs.talk`."""

    def answer(self, request: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events that answer a request; closing it ends the answer."""


class _Here:
    """A lane whose runtime is installed in this process."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def answer(self, request: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        return answer_request(self._model, dict(request))


@contextmanager
def talker(opened: Bundle, manifest: Manifest, lane: str | None, threads: int) -> Iterator[tuple[str, Talker]]:
    """A lane that can be asked, and its name: in this process, or in the environment that verified it.

    Raises:
        RuntimeUnavailable: none can.
    """
    try:
        model = opened.session
        assert isinstance(model, LanguageModel)
        yield opened.lane, _Here(model)
        return
    except RuntimeUnavailable as exc:
        problem = exc
    for name, entry in (manifest.lanes if lane is None else {lane: manifest.lanes[lane]}).items():
        with err.status(f"starting {entry.verified_by}") as status:
            try:
                talking = TalkingLane(opened.directory, entry, threads, status.update).__enter__()
            except RuntimeUnavailable as exc:
                problem = exc
                continue
        try:
            yield name, talking
        finally:
            talking.__exit__(None, None, None)
        return
    raise problem


def generation_options(command: Any) -> Any:
    """How an answer is made."""
    for option in reversed([
        click.option("--max-tokens", type=click.IntRange(1), default=DEFAULT_TOKENS, show_default=True, help="How long an answer may be, in tokens."),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token; more is more varied."),
        click.option("--top-k", type=int, default=0, help="Draw from so many of the likeliest tokens only."),
        click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest tokens that together have this probability."),
        click.option("--repetition-penalty", type=float, default=1.0, help="More than 1 makes what was said less likely to be said again."),
        click.option("--seed", type=click.IntRange(0), help="The same seed draws the same tokens."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. May be given several times."),
    ]):
        command = option(command)
    return command


def request_of(given: Mapping[str, Any], *, raw: bool = False, **options: Any) -> dict[str, Any]:
    """A request to the agent.

    Args:
        given: ``messages`` or ``prompt``.
        raw: go on with a prompt as it is, whatever the model was trained on.
        options: those of :func:`generation_options`.
    """
    return {**given, "raw": raw, "tokens": options.pop("max_tokens"), "stop": list(options.pop("stop")), "sampling": options}
