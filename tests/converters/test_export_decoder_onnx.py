"""The builder of onnxruntime-genai fails: what is told of it."""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path

import pytest
from edgeexport.converters.export_decoder_onnx import build_graph

from edgeexport.errors import StepFailed
from edgeexport.step import Context


def say_and_fail(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put something in the builder's place that says its last words."""
    builder = tmp_path / "builder"
    builder.write_text(f"#!/bin/sh\necho Loading weights\necho '{words}' >&2\nexit 1\n", encoding="utf-8")
    builder.chmod(builder.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(builder))
    build_graph(tmp_path, tmp_path / "out", Context(tmp_path, threads=1))


def test_its_last_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepFailed, match="builder failed") as raised:
        say_and_fail("KeyError: rope_theta", tmp_path, monkeypatch)
    assert raised.value.why == "Loading weights / KeyError: rope_theta"


def test_a_full_disk_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        say_and_fail("OSError: [Errno 28] No space left on device: model.onnx.data", tmp_path, monkeypatch)
    assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["builder"]
