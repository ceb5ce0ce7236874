"""A lane's environment: what a person reads when it can't be made."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeexport.errors import RuntimeUnavailable
from edgeexport.runner.environment import Environment

BROKEN = ["/bin/sh", "-c", "echo WARNING: retrying >&2; echo 'no such package' >&2; exit 1"]


def failed(tmp_path: Path) -> RuntimeUnavailable:
    environment = Environment("onnxruntime==1.31.1", tmp_path)
    environment.directory.parent.mkdir(parents=True)
    with pytest.raises(RuntimeUnavailable, match=r"The environment for onnxruntime.* could not be made") as caught:
        environment._run(BROKEN)
    return caught.value


def test_what_pip_said_last_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    error = failed(tmp_path)
    assert error.why == "no such package"
    assert "network" in str(error.hint)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    error = failed(tmp_path)
    assert error.why == f"{tmp_path / 'environments'} has 3 MB left"
    assert "EDGEEXPORT_CACHE" in str(error.hint)
