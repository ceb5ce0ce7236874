"""The measuring agent's jobs for language models: what one says of texts, how fast it is, and answering what it is asked."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from edgeexport.errors import DataError, EdgeExportError
from edgeexport.session import scoring
from edgeexport.session.evidence import Answers
from edgeexport.session.generation import Piece, require_room
from edgeexport.session.job import peak_rss_mb, report, say
from edgeexport.session.language_model import LanguageModel
from edgeexport.session.sampling import Sampling

# Tokens of the prompt that is timed, and of what it is continued by.
PROMPT, ANSWER = 128, 16


def score_rows(model: LanguageModel, rows: list[dict[str, Any]], label: str) -> Answers:
    """What a language model says of the rows of a data set."""
    found, context = Answers([], [], [], []), model.context
    for number, row in enumerate(rows):
        prompt, continued = model.prompt_of_row(row)
        said = model.expect(prompt, continued=continued)
        scoring.add_expectation(found, prompt.ids[:context], prompt.ends, said, len(prompt.ids) > context, continued=continued)
        report((number + 1) / len(rows), f"{label}: {number + 1} of {len(rows)} texts")
    return found


def generation_speed(model: LanguageModel, rounds: int) -> dict[str, Any]:
    """How fast a language model reads a prompt and writes an answer, and what memory it takes when its context is full.

    Each round reads a prompt of PROMPT tokens and goes on with ANSWER tokens, which are timed one by one.
    """
    prompt = min(PROMPT, model.context // 2)
    prefill, decode = [], []
    for number in range(rounds + 1):
        report(number / rounds, f"timing, round {number + 1} of {rounds + 1}")
        first, *others = model.seconds_by_token(prompt, ANSWER)
        if number:  # the first round allocates
            prefill.append(first)
            decode += others
    model.fill()
    if not decode:
        raise DataError("The speed of answers cannot be measured.", why="the model ends every text at its first token")
    return {"peak_rss_mb": peak_rss_mb(), "generation": {
        "prompt_tokens": prompt, "first_token_ms": 1000 * float(np.median(prefill)),
        "prefill_tokens_per_second": prompt / float(np.median(prefill)), "decode_tokens_per_second": 1 / float(np.median(decode))}}


def talk(model: LanguageModel) -> None:
    """Answer requests that come on standard input, one JSON object a line, until there are no more.

    A request is ``{"messages": […] or "prompt": TEXT, "raw": BOOL, "sampling": {…}, "tokens": N, "room": N, "stop": […]}``, where ``room`` says for
    how many tokens there must be room, or nothing is answered (1). It is answered by lines
    ``{"piece": TEXT}`` and then ``{"end": {…}}``, or ``{"error": {…}}``. SIGINT ends an answer after the token that is under way.
    """
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    say({"ready": True})
    for line in sys.stdin:
        interrupted.clear()
        try:
            for event in answer_request(model, json.loads(line), interrupted.is_set):
                say(event)
        except EdgeExportError as exc:
            say({"error": exc.as_dict()})
        except Exception as exc:  # of a runtime or a tokenizer: the next request may be one that it answers
            say({"error": DataError("The model failed on this request.", why=f"{type(exc).__name__}: {exc}").as_dict()})


def answer_request(model: LanguageModel, request: dict[str, Any],
                   interrupted: Callable[[], bool] = lambda: False) -> Generator[dict[str, Any], None, None]:
    """The events that answer a request: pieces of text, and then what it took and what ended it.

    That is ``stop``, ``tokens`` or ``context``, as in :class:`Piece`, or ``interrupt``.
    """
    given = request.get("messages") or request["prompt"]
    prompt = model.prompt(given, raw=bool(request.get("raw")))
    require_room(len(prompt.ids), model.context, request.get("room", 1))
    started, first = time.perf_counter(), None
    held = model.held_of(prompt)
    piece = Piece("", 0)
    for piece in model.generate(prompt, Sampling(**request.get("sampling", {})), request.get("tokens"), request.get("stop", ())):
        first = first or time.perf_counter()
        if piece.text:
            yield {"piece": piece.text}
        if interrupted():
            break
    ended = time.perf_counter()
    yield {"end": {"ended": piece.ended or "interrupt", "tokens": piece.tokens,
                   "prompt_tokens": len(prompt.ids), "read_tokens": len(prompt.ids) - held,
                   "first_token_seconds": (first or ended) - started, "seconds": ended - started}}
