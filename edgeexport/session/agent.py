"""The measuring agent: runs a job where the runtime is, with nothing else installed, and writes what it found.

    python agent.py JOB.json

A job is ``{"do": "answers" | "speed" | "texts", "payload": DIR, "variant": NAME, "runtime": NAME, "threads": N, "out": DIR, …}``.
With ``parent``, a process id, it ends with that process.
Progress goes to standard output, one JSON object a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import EdgeExportError, NoRoom
from edgeexport.session import scoring, tasks
from edgeexport.session.evidence import Answers, read_json_lines
from edgeexport.session.language_model import LanguageModel
from edgeexport.session.payload import GENERATION, Payload, Session, TruncationWarning


# Tokens of the prompt that is timed, and of what it is continued by.
PROMPT, ANSWER = 128, 16


def answer_rows(session: Session, rows: list[dict[str, Any]], label: str) -> Answers:
    """The answers of a session to the rows of a data set."""
    head, spec = session.payload.head, session.payload.spec
    found = Answers([], [], [], [])
    for number, row in enumerate(rows):
        try:
            encoded = session.encode(row["text"], row.get("text_pair"), row.get("role"))
        except NoRoom:
            found.add_unanswered()
            continue
        tasks.add_answer(found, head, spec, encoded, session.outputs(encoded))
        if number % 50 == 49:
            report((number + 1) / len(rows), f"{label}: {number + 1} of {len(rows)} texts")
    return found


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


def measure_answers(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Answer every data set of the job; one .npz file each."""
    session = open_session(job)
    for name, path in job["datasets"].items():
        rows = read_json_lines(Path(path))
        answers = score_rows(session, rows, name) if isinstance(session, LanguageModel) else answer_rows(session, rows, name)
        answers.save(out / f"{name}.npz")
    return {}


def measure_speed(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Load time in seconds, latency by length in milliseconds, and peak memory of a process that only runs this model.

    Each length gets a full text of that length. Rounds go through all lengths in turn, so that a slow moment of the machine meets them
    all; and through the original too, where the job has one to compare with, which is loaded when the memory has been read.
    """
    started = time.perf_counter()
    session = open_session(job)
    load_seconds = time.perf_counter() - started
    if isinstance(session, LanguageModel):
        return {"load_seconds": load_seconds, "threads": job["threads"], "rounds": job["rounds"], "latency_ms": {}, **generation_speed(session, job["rounds"])}
    sessions = {"latency_ms": session}
    feeds = {"latency_ms": warmed(session, job["lengths"])}
    memory = peak_rss_mb()
    if "original" in job:
        other = sessions["original_latency_ms"] = open_session(job | job["original"])
        feeds["original_latency_ms"] = warmed(other, job["lengths"])
    times: dict[str, dict[int, list[float]]] = {name: {length: [] for length in full} for name, full in feeds.items()}
    for number in range(job["rounds"]):
        report(number / job["rounds"], f"timing, round {number + 1} of {job['rounds']}")
        for length in feeds["latency_ms"]:
            for name, each in sessions.items():
                started = time.perf_counter()
                each.model.run(feeds[name][length])
                times[name][length].append(1000 * (time.perf_counter() - started))
    latency = {name: {str(length): {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}
                      for length, values in found.items()} for name, found in times.items()}
    return {"load_seconds": load_seconds, "peak_rss_mb": memory, "rounds": job["rounds"], "threads": job["threads"], **latency}


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
        token = decoder.read(prompt).argmax(keepdims=True)
        times = [time.perf_counter() - started]
        for _ in range(min(ANSWER, decoder.context - len(prompt))):
            started = time.perf_counter()
            token = decoder.read(token).argmax(keepdims=True)
            times.append(time.perf_counter() - started)
        if number:  # the first round allocates
            prefill.append(times[0])
            decode.append(float(np.median(times[1:])))
    decoder.read(np.resize(words, decoder.context - decoder.position))
    return {"peak_rss_mb": peak_rss_mb(), "generation": {
        "prompt_tokens": len(prompt), "first_token_ms": 1000 * float(np.median(prefill)),
        "prefill_tokens_per_second": len(prompt) / float(np.median(prefill)), "decode_tokens_per_second": 1 / float(np.median(decode))}}


def warmed(session: Session, lengths: Sequence[int]) -> dict[int, dict[str, np.ndarray]]:
    """The inputs for texts of these lengths, each run once: the first run allocates."""
    feeds = full_texts(session, lengths)
    for full in feeds.values():
        session.model.run(full)
    return feeds


def full_texts(session: Session, lengths: Sequence[int]) -> dict[int, dict[str, np.ndarray]]:
    """The inputs for a text of exactly so many tokens, int64 [1, length] each, for every length that the model reads."""
    spec = session.payload.spec
    words = " ".join(["many words make a long text that fills every length there is"] * 64)
    base = session.encode("how many?", words) if session.payload.head.task == "question-answering" else session.encode(words)
    feeds = {}
    for length in lengths:
        if length <= spec.max_length:
            ids = np.resize(base.ids[1:-1], length - 2)
            feeds[length] = {name: np.zeros((1, length), np.int64) for name in spec.inputs}
            feeds[length]["input_ids"][0] = np.concatenate([base.ids[:1], ids, base.ids[-1:]])
            feeds[length]["attention_mask"][:] = 1
    return feeds


def answer_texts(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """The answers to the job's texts, as an app gets them."""
    return {"results": run_texts(open_session(job), job["texts"], job["pair"])}


def run_texts(session: Session, texts: list[str], pair: str | None) -> list[dict[str, Any]]:
    """The answers to texts, as plain data, each with what it warned of."""
    results = []
    for text in texts:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TruncationWarning)
            answer = session.answer(text, pair)
        cut = [str(warning.message) for warning in caught if warning.category is TruncationWarning]
        results.append({"text": text, "answer": answer.tolist() if isinstance(answer, np.ndarray) else answer, "warnings": cut})
    return results


def open_session(job: dict[str, Any]) -> Session | LanguageModel:
    """The session that a job asks for."""
    payload = Payload(Path(job["payload"]))
    return (LanguageModel if payload.head.task == GENERATION else Session)(payload, job["variant"], job["runtime"], job["threads"])


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far, in MB of 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(fraction: float, message: str) -> None:
    """Tell the supervisor how far the job is."""
    sys.stdout.write(json.dumps({"fraction": fraction, "message": message}) + "\n")
    sys.stdout.flush()


JOBS = {"answers": measure_answers, "speed": measure_speed, "texts": answer_texts}


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the supervisor ends, however that happens (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, <linux/prctl.h>
        if os.getppid() != parent:
            sys.exit(1)


def main(path: str) -> int:
    """Run the job in a file; its result or its error goes to `result.json` in the job's output directory."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    if "parent" in job:
        die_with_parent(job["parent"])
    out = Path(job["out"])
    try:
        result = {"result": JOBS[job["do"]](job, out)}
    except EdgeExportError as exc:
        result = {"error": exc.as_dict()}
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0 if "result" in result else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
