"""The contract over gRPC, against lerobot's own PolicyServer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grpc_peer import serve_grpc
from peer_process import ProcessPeer

from async_delta_inference.transport.testing import TransportContract


class TestGrpcContract(TransportContract):
    scheme = "grpc"
    absent_uri = "grpc://127.0.0.1:1"

    @pytest.fixture
    def peer(self) -> Iterator[ProcessPeer]:
        peer = ProcessPeer(serve_grpc)
        yield peer
        peer.kill()
