"""A rendezvous folder of each test's own, in which nothing may be left."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE


@pytest.fixture
def shm_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, because a socket's path is bounded; set for this process and what it starts."""
    folder = Path(tempfile.mkdtemp(prefix="adi-test-"))
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    yield folder
    shutil.rmtree(folder)
