"""What all unit tests share: a cache of their own, and child processes that find the fake steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("small_files")

# Deterministic, and quick: what a longer search finds becomes an example here.
settings.register_profile("unit", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def unit_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(unit_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEEXPORT_CACHE", str(unit_cache))
    path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
