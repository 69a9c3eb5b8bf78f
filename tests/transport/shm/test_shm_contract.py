"""The contract over shared memory, against lerobot's own PolicyServer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peer_process import ProcessPeer
from shm_peer import serve_shm

from async_delta_inference.transport.testing import TransportContract


class TestShmContract(TransportContract):
    scheme = "shm"
    absent_uri = "shm://nobody-is-here"

    @pytest.fixture
    def peer(self, shm_folder: Path) -> Iterator[ProcessPeer]:
        peer = ProcessPeer(serve_shm, "contract", str(shm_folder))
        yield peer
        peer.kill()
