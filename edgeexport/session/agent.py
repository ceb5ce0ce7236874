"""The measuring agent: runs a job where the runtime is, with nothing else installed, and writes what it found.

    python agent.py JOB.json

A job is ``{"do": "answers" | "speed" | "texts" | "talk", "payload": DIR, "variant": NAME, "runtime": NAME, "threads": N, "out": DIR, …}``.
With ``parent``, a process id, it ends with that process.
Progress goes to standard output, one JSON object a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import EdgeExportError, NoRoom
from edgeexport.session import tasks
from edgeexport.session.evidence import Answers, read_json_lines
from edgeexport.session.generation_jobs import generation_speed, score_rows, talk
from edgeexport.session.job import peak_rss_mb, report
from edgeexport.session.language_model import LanguageModel
from edgeexport.session.opening import open_session
from edgeexport.session.payload import Payload, Session, TruncationWarning


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


def measure_answers(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Answer every data set of the job; one .npz file each."""
    session = open_job(job)
    for name, path in job["datasets"].items():
        rows = read_json_lines(Path(path))
        found = score_rows(session, rows, name) if isinstance(session, LanguageModel) else answer_rows(session, rows, name)
        found.save(out / f"{name}.npz")
    return {}


def measure_speed(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Load time in seconds, latency by length in milliseconds, and peak memory of a process that only runs this model.

    Each length gets a full text of that length. Rounds go through all lengths in turn, so that a slow moment of the machine meets them
    all; and through the original too, where the job has one to compare with, which is loaded when the memory has been read.
    """
    started = time.perf_counter()
    session = open_job(job)
    load_seconds = time.perf_counter() - started
    if isinstance(session, LanguageModel):
        found = generation_speed(session, job["rounds"])
        return {"load_seconds": load_seconds, "threads": job["threads"], "rounds": job["rounds"], "latency_ms": {}, **found}
    sessions: dict[str, Session] = {"latency_ms": session}
    feeds = {"latency_ms": warmed(session, job["lengths"])}
    memory = peak_rss_mb()
    if "original" in job:
        other = open_job(job | job["original"])
        assert isinstance(other, Session)
        sessions["original_latency_ms"] = other
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
    session = open_job(job)
    assert isinstance(session, Session)
    return {"results": run_texts(session, job["texts"], job["pair"])}


def answer_requests(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Answer what a language model is asked on standard input."""
    Payload(Path(job["payload"])).require_generation()
    model = open_job(job)
    assert isinstance(model, LanguageModel)
    talk(model)
    return {}


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


def open_job(job: dict[str, Any]) -> Session | LanguageModel:
    """The session that a job asks for."""
    return open_session(Payload(Path(job["payload"])), job["variant"], job["runtime"], job["threads"])


JOBS = {"answers": measure_answers, "speed": measure_speed, "texts": answer_texts, "talk": answer_requests}


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
