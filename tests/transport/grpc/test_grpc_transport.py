"""What only gRPC has: a server that restarts, statuses that become errors, other people's servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_peer import serve_grpc
from peer_process import ProcessPeer

from async_delta_inference.errors import (
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport import TransportOptions, open_transport
from async_delta_inference.transport.grpc.link import map_rpc_error
from async_delta_inference.transport.testing import CONTRACT_POLICY, contract_observation
from async_delta_inference.transport.testing.contract import WAIT_S, eventually
from async_delta_inference.transport.testing.peer import expect_answer


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    """A Unix socket: an address that a restarted server can take again without a fixed port."""
    return f"unix:{tmp_path}/server.sock"


def test_server_that_restarts_goes_on_answering(socket_path: str) -> None:
    peer = ProcessPeer(serve_grpc, socket_path)
    options = TransportOptions(reconnect_timeout_s=WAIT_S)
    with open_transport(f"grpc://{socket_path}", options) as transport:
        transport.connect(CONTRACT_POLICY)
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        peer.hold()
        transport.send_observation(contract_observation(1))
        eventually(lambda: peer.seen() == [0, 1])
        peer.kill()
        restarted = ProcessPeer(serve_grpc, socket_path)
        try:
            # The observation that the dead server owed an answer to is sent again by the transport.
            expect_answer(transport.receive_actions(WAIT_S), 1)
            transport.send_observation(contract_observation(2))
            expect_answer(transport.receive_actions(WAIT_S), 2)
        finally:
            restarted.kill()


def test_restart_while_idle_sets_the_policy_up_again(socket_path: str) -> None:
    peer = ProcessPeer(serve_grpc, socket_path)
    options = TransportOptions(reconnect_timeout_s=WAIT_S)
    with open_transport(f"grpc://{socket_path}", options) as transport:
        transport.connect(CONTRACT_POLICY)
        peer.kill()
        restarted = ProcessPeer(serve_grpc, socket_path)
        try:
            transport.send_observation(contract_observation(3))
            expect_answer(transport.receive_actions(WAIT_S), 3)
        finally:
            restarted.kill()


def test_server_that_never_answers_is_a_timeout() -> None:
    peer = ProcessPeer(serve_grpc)
    try:
        with open_transport(peer.uri, TransportOptions(inference_timeout_s=0.3)) as transport:
            transport.connect(CONTRACT_POLICY)
            peer.hold()
            transport.send_observation(contract_observation(0))
            with pytest.raises(TransportTimeout):
                transport.receive_actions(WAIT_S)
            peer.release()
    finally:
        peer.kill()


def test_listener_that_never_speaks_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"grpc://127.0.0.1:{mute.getsockname()[1]}"
        options = TransportOptions(connect_timeout_s=0.5)
        with open_transport(uri, options) as transport, pytest.raises(PeerUnreachableError, match="async-delta-serve"):
            transport.connect(CONTRACT_POLICY)


def test_server_of_another_kind_is_refused() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            open_transport(f"grpc://127.0.0.1:{port}") as transport,
            pytest.raises(ProtocolError, match="not a PolicyServer"),
        ):
            transport.connect(CONTRACT_POLICY)
    finally:
        server.stop(None).wait()


class Status(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


EXPECTED: dict[grpc.StatusCode, type[TransportError]] = {
    grpc.StatusCode.UNAVAILABLE: PeerGoneError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TransportTimeout,
    grpc.StatusCode.CANCELLED: TransportClosed,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_becomes_an_error_of_ours(code: grpc.StatusCode) -> None:
    error = map_rpc_error(Status(code, "details"), "host:1", "exchange")
    assert type(error) is EXPECTED.get(code, ProtocolError)
    assert "host:1" in str(error)


def test_exception_in_the_server_is_named() -> None:
    status = Status(grpc.StatusCode.UNKNOWN, "Exception calling application: no such checkpoint")
    refused = map_rpc_error(status, "host:1", "setup")
    assert isinstance(refused, SetupRefusedError)
    assert str(refused).endswith("no such checkpoint")
    assert isinstance(map_rpc_error(status, "host:1", "exchange"), PolicyError)


def test_closing_during_setup_leaves_nothing() -> None:
    transport = open_transport("grpc://127.0.0.1:1", TransportOptions(connect_timeout_s=WAIT_S))
    closer = threading.Timer(0.1, transport.close)
    closer.start()
    with pytest.raises(TransportError):
        transport.connect(CONTRACT_POLICY)
    closer.join()
    assert transport.closed
