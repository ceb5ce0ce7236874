"""The fixture that all these tests share."""

from __future__ import annotations

import pytest
from zoo import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Checkpoints, exports and sessions, each made once."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads wait for each other longer than these models take."""
    import torch

    torch.set_num_threads(1)
