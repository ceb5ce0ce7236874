"""Real builds through the command line: what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Cli
from tiny import Case, write_checkpoint

from edgeexport.artifact import Task
from edgeexport.store import default_root


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
