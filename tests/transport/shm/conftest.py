"""A rendezvous folder of each test's own, in which nothing may be left."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shm_actor import shm_server
from shm_processes import left_behind
from shm_session import ProbedPolicy, connected

from async_delta_inference.transport import Server
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE


@pytest.fixture
def shm_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, because a socket's path is bounded; set for this process and what it starts."""
    folder = Path(tempfile.mkdtemp(prefix="adi-test-"))
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def policy() -> ProbedPolicy:
    return ProbedPolicy()


@pytest.fixture
def server(shm_folder: Path, policy: ProbedPolicy) -> Iterator[Server]:
    server = shm_server("here", policy, action_slots=4)
    server.start()
    yield server
    server.stop()
    assert left_behind(shm_folder) == []


@pytest.fixture
def transport(server: Server) -> Iterator[ShmTransport]:
    with connected() as transport:
        yield transport
