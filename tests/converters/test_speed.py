"""Timing: full texts of each length, and a second model in turn with the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import LENGTHS, Case
from zoo import RUNTIMES, Zoo

from edgeexport.artifact import Task
from edgeexport.session import agent

CASES = (Case("bert", Task.TEXT_CLASSIFICATION), Case("bert", Task.QUESTION_ANSWERING))


def job_for(zoo: Zoo, case: Case, model_format: str) -> dict[str, Any]:
    payload = zoo.payload(zoo.loaded(case), zoo.exported(case, model_format))
    return {"payload": str(payload.path), "variant": "v", "runtime": RUNTIMES[model_format], "threads": 1, "lengths": list(LENGTHS), "rounds": 3}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
def test_texts_are_as_long_as_they_shall_be(zoo: Zoo, case: Case, model_format: str) -> None:
    session = zoo.session(case, model_format)
    feeds = agent.full_texts(session, [*LENGTHS, 10**6])
    assert list(feeds) == list(LENGTHS)  # and none for a length that the model does not read
    for length, full in feeds.items():
        assert set(full) == set(session.payload.spec.inputs)
        assert {values.shape for values in full.values()} == {(1, length)}
        assert full["attention_mask"].all()
        assert len(np.unique(full["input_ids"])) > 4
        assert all(np.isfinite(values).all() for values in session.model.run(full).values())


def test_a_model_alone_and_beside_another(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_for(zoo, CASES[0], "onnx")
    alone = agent.measure_speed(job, tmp_path)
    assert "original_latency_ms" not in alone
    order: list[str] = []
    opened = agent.open_job

    def watched(given: dict[str, Any]) -> Any:
        session = opened(given)
        run, name = session.model.run, given["variant"] + given.get("mark", "")
        session.model.run = lambda feeds: order.append(name) or run(feeds)  # type: ignore[method-assign,func-returns-value]
        return session

    monkeypatch.setattr(agent, "open_job", watched)
    found = agent.measure_speed(job | {"original": {"payload": job["payload"], "variant": "v", "mark": " original"}}, tmp_path)
    for name in ("latency_ms", "original_latency_ms"):
        assert list(found[name]) == [str(length) for length in LENGTHS]
        assert all(0 < times["p50"] <= times["p95"] for times in found[name].values())
    assert alone.keys() | {"original_latency_ms"} == found.keys()
    warm = len(LENGTHS)
    assert order[:2 * warm] == ["v"] * warm + ["v original"] * warm
    assert order[2 * warm:] == ["v", "v original"] * (job["rounds"] * warm)
