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
from edgeexport.session.generation import Piece
from edgeexport.session.job import peak_rss_mb, report, say
from edgeexport.session.language_model import LanguageModel
from edgeexport.session.sampling import Sampling

# Tokens of the prompt that is timed, and of what it is continued by.
PROMPT, ANSWER = 128, 16


def score_rows(model: LanguageModel, rows: list[dict[str, Any]], label: str) -> Answers:
    """What a language model says of the rows of a data set."""
    found, context = Answers([], [], [], []), model.decoder.context
    for number, row in enumerate(rows):
        whole, continued = model.encode_row(row)
        ids = whole[:context]
        said = (scoring.continue_text if continued else scoring.read_text)(model.decoder, ids)
        scoring.add_expectation(found, ids, said, len(whole) > context, continued=continued)
        report((number + 1) / len(rows), f"{label}: {number + 1} of {len(rows)} texts")
    return found


def generation_speed(model: LanguageModel, rounds: int) -> dict[str, Any]:
    """How fast a language model reads a prompt and writes an answer, and what memory it takes when its context is full.

    Each round reads a prompt of PROMPT tokens and goes on with ANSWER tokens, which are timed one by one.
    """
    decoder = model.decoder
    words = model.encode(" ".join(["many words make a long text that fills every context there is"] * 16))
    prompt = np.resize(words, min(PROMPT, decoder.context // 2))
    prefill, decode = [], []
    for number in range(rounds + 1):
        report(number / rounds, f"timing, round {number + 1} of {rounds + 1}")
        decoder.rewind(0)
        started = time.perf_counter()
        token = decoder.read(prompt).argmax().reshape(1)
        times = [time.perf_counter() - started]
        for _ in range(min(ANSWER, decoder.context - len(prompt))):
            started = time.perf_counter()
            token = decoder.read(token).argmax().reshape(1)
            times.append(time.perf_counter() - started)
        if number:  # the first round allocates
            prefill.append(times[0])
            decode.append(float(np.median(times[1:])))
    if decoder.position < decoder.context:
        decoder.read(np.resize(words, decoder.context - decoder.position))
    return {"peak_rss_mb": peak_rss_mb(), "generation": {
        "prompt_tokens": len(prompt), "first_token_ms": 1000 * float(np.median(prefill)),
        "prefill_tokens_per_second": len(prompt) / float(np.median(prefill)), "decode_tokens_per_second": 1 / float(np.median(decode))}}


def talk(model: LanguageModel) -> None:
    """Answer requests that come on standard input, one JSON object a line, until there are no more.

    A request is ``{"messages": […] or "prompt": TEXT, "raw": BOOL, "sampling": {…}, "tokens": N, "stop": […]}``. It is answered by lines
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
    """The events that answer a request: pieces of text, and then what it took."""
    given = request.get("messages") or request["prompt"]
    ids = model.encode(given) if request.get("raw") else model.encode_request(given)
    started, first = time.perf_counter(), None
    held = model.decoder.held_of(ids.tolist())
    piece = Piece("", 0)
    for piece in model.generate(ids, Sampling(**request.get("sampling", {})), request.get("tokens"), request.get("stop", ())):
        first = first or time.perf_counter()
        if piece.text:
            yield {"piece": piece.text}
        if interrupted():
            break
    ended = time.perf_counter()
    yield {"end": {"prompt_tokens": len(ids), "read_tokens": len(ids) - held, "tokens": piece.tokens,
                   "first_token_seconds": (first or ended) - started, "seconds": ended - started}}
