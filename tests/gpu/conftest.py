"""What needs a GPU. Where there is none, every test here is skipped, by name.

``ASYNC_DELTA_GPU_TESTS_DEVICE=cpu`` runs those that can be run on the CPU: that shows that the tests themselves work,
and nothing of a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DEVICE_NAME = os.environ.get("ASYNC_DELTA_GPU_TESTS_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here."""
    if DEVICE_NAME == "cuda" and not torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE_NAME)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """For what a CPU cannot stand in for."""
    if device.type != "cuda":
        pytest.skip("this needs a CUDA device")
    return device


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_act import build

    return build(tmp_path_factory.mktemp("act"))
