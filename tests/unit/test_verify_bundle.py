"""Verifying a bundle elsewhere: golden vectors that come out as they were pass, anything else does not, and what can't run is null."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import answers, make_bundle

from edgeexport.errors import BundleError, RuntimeUnavailable, StepFailed, UnknownName
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Verdict
from edgeexport.verify_bundle import Verification, verify_bundle

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
RECORDED = answers(1).chosen([0, 2, 5])


def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Callable[[str], Answers], recorded: Verdict = PASS,
           lanes: tuple[str, ...] = ()) -> Verification:
    """Verify a bundle in runtimes that answer as `here` says."""

    def run_job(environment: Any, job: dict[str, Any], out: Path, context: object) -> None:
        out.mkdir()
        here(job["runtime"]).save(out / "golden.npz")

    monkeypatch.setattr("edgeexport.runner.local.run_job", run_job)
    make_bundle(tmp_path / "bundle", tmp_path / "scratch", {"onnx": recorded, "litert": PASS})
    found = verify_bundle(tmp_path / "bundle", lanes, lambda message: None)
    json.dumps(found.model_dump(mode="json"), allow_nan=False)  # raises where a figure is no number
    return found


def shifted(by: float) -> Answers:
    found = RECORDED.chosen([0, 1, 2])
    found.numbers = [rows * (1 + by) for rows in found.numbers]
    return found


def test_the_same_answers_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify(tmp_path, monkeypatch, lambda runtime: RECORDED)
    assert found.verdict is PASS
    assert [(lane.lane, lane.verdict, lane.distance, lane.texts) for lane in found.lanes] == [("onnx", PASS, 0.0, 3), ("litert", PASS, 0.0, 3)]
    assert found.lanes[0].reference_distance is not None
    assert found.lanes[0].reference_distance > 0.1  # the recorded reference is another one
    assert found.lanes[0].same_decisions == 3


@pytest.mark.parametrize(("by", "verdict"), [(0.009, PASS), (0.02, FAIL), (-0.5, FAIL)])
def test_answers_may_differ_as_much_as_was_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, verdict: Verdict) -> None:
    found = verify(tmp_path, monkeypatch, lambda runtime: shifted(by))
    assert found.lanes[0].distance == pytest.approx(abs(by), rel=1e-3)
    assert found.verdict is verdict


@pytest.mark.parametrize("plant", [np.nan, np.inf])
@pytest.mark.parametrize("text", [0, 1, 2])
def test_one_answer_that_is_no_number_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: float, text: int) -> None:
    def here(runtime: str) -> Answers:
        found = shifted(0.0)
        found.numbers[text] = np.full_like(found.numbers[text], plant)
        return found

    found = verify(tmp_path, monkeypatch, here, lanes=("litert",))
    assert (found.verdict, found.lanes[0].verdict, found.lanes[0].distance) == (FAIL, FAIL, None)
    assert found.lanes[0].problem == "answers that are no numbers, or of another shape"


def raising(error: Exception) -> Callable[[str], Answers]:
    def here(runtime: str) -> Answers:
        if runtime == "ai-edge-litert":
            raise error
        return RECORDED

    return here


def test_a_runtime_that_cannot_run_here_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeUnavailable("It needs Python 3.8.", why="this is Python 3.11")
    found = verify(tmp_path, monkeypatch, raising(error))
    assert found.verdict is PASS  # of the other lane
    assert (found.lanes[1].verdict, found.lanes[1].problem) == (None, "It needs Python 3.8: this is Python 3.11")
    assert verify_bundle(tmp_path / "bundle", ["litert"], lambda message: None).verdict is INCONCLUSIVE


def test_a_model_that_crashes_its_runtime_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify(tmp_path, monkeypatch, raising(StepFailed("litert died with signal 11.")))
    assert (found.verdict, found.lanes[1].verdict) == (FAIL, FAIL)
    assert "signal 11" in str(found.lanes[1].problem)


@pytest.mark.parametrize("recorded", [FAIL, INCONCLUSIVE])
def test_golden_vectors_do_not_make_good_what_was_sealed_as_not_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Verdict) -> None:
    found = verify(tmp_path, monkeypatch, lambda runtime: RECORDED, recorded)
    assert (found.verdict, found.recorded) == (recorded, recorded)


def test_a_damaged_bundle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    (tmp_path / "bundle" / "variants" / "onnx-dynamic-int8" / "model.onnx").write_bytes(b"evil")
    monkeypatch.setattr("edgeexport.runner.local.run_job", lambda *args: pytest.fail("was run"))
    with pytest.raises(BundleError):
        verify_bundle(tmp_path / "bundle", [], lambda message: None)


def test_an_unknown_lane_suggests_the_nearest(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    with pytest.raises(UnknownName) as caught:
        verify_bundle(tmp_path / "bundle", ["onx"], lambda message: None)
    assert caught.value.hint == "did you mean 'onnx'?"
