"""The fixtures that these tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.recipe import ModelSection

if TYPE_CHECKING:
    from saved_models import Build

pytest.register_assert_rewrite("architectures", "int8", "saved_models")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Checkpoints, exports and sessions, each made once."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads wait for each other longer than these models take."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Build]:
    """Makes a runner of steps on a SavedModel."""
    from saved_models import Build

    def make(task: Task, **options: Any) -> Build:
        root = tmp_path / "steps"
        root.mkdir()
        return Build(root, ModelSection(source="model", task=task, **options))

    return make
