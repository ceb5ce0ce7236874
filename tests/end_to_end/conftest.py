"""Real builds through the command line: what they share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import Case, write_checkpoint

from edgeexport.artifact import Task
from edgeexport.store import default_root


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """The command line with a store and a working directory of its own; the runtimes' environments are shared by all tests."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGEEXPORT_CACHE": str(self.directory / "cache"), "CI": "true", "COLUMNS": "80"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "edgeexport", *arguments]

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(self.command(*arguments), cwd=self.directory, env=self.environment | (env or {}), capture_output=True,
                              text=True, check=False, stdin=subprocess.DEVNULL)
        return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def environments() -> Path:
    """The runtimes' environments, made once per machine: they are keyed by their locks, so sharing them is what a user's builds do."""
    path = default_root() / "environments"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def new_cli(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Callable[[], Cli]:
    def make() -> Cli:
        directory = tmp_path_factory.mktemp("cli")
        (directory / "cache").mkdir()
        (directory / "cache" / "environments").symlink_to(environments)
        return Cli(directory)

    return make


@pytest.fixture
def cli(new_cli: Callable[[], Cli]) -> Cli:
    return new_cli()


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded BERT with a classification head."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "classifier", Case("bert", Task.TEXT_CLASSIFICATION))
