"""Clients that mean ill, or hang: calls that say nothing, streams that do not end, more than anybody may send.

To grow it: `half_open` opens any call of the service and leaves it open; whoever comes afterwards must be served.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from lerobot.transport import services_pb2
from robot_calls import RobotCalls

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import LinkOptions, PolicyNeeds, Server, serve
from async_delta_inference.transport.grpc import GrpcListener
from async_delta_inference.transport.grpc.server import listener
from async_delta_inference.transport.private_folder import FOLDER_VARIABLE
from async_delta_inference.transport.testing import WAIT_S, ScriptedPolicy

ANYWHERE = "grpc://127.0.0.1:0"
SERVICE = "/transport.AsyncInference/"


class WidePolicy(ScriptedPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.ask_for(PolicyNeeds("the scripted policy", action_dim=3))


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(WidePolicy(), ANYWHERE, max_sessions=2) as server:
        yield server


HalfOpen = Callable[[RobotCalls, str], Any]


@pytest.fixture
def half_open() -> Iterator[HalfOpen]:
    """Begins a call of a client's and says nothing more until the test ends."""
    over = threading.Event()
    calls = []

    def silence() -> Iterator[bytes]:
        over.wait(10 * WAIT_S)
        yield from ()

    def begin(client: RobotCalls, name: str) -> Any:
        calls.append(client.channel.stream_unary(SERVICE + name).future(silence()))
        return calls[-1]

    yield begin
    over.set()
    for call in calls:
        call.cancel()


def expect_service(server: Server) -> None:
    client = RobotCalls(server.uris[0], 5)
    client.begin()
    client.send(0)
    client.expect(0)
    client.channel.close()


@pytest.mark.parametrize("name", ["Ready", "SendPolicyInstructions", "SendObservations", "GetActions"])
def test_calls_that_say_nothing_keep_nobody_waiting(server: Server, half_open: HalfOpen, name: str) -> None:
    silent = RobotCalls(server.uris[0], 1)
    silent.begin()
    for _ in range(100):  # more than there are threads
        half_open(silent, name)
    expect_service(server)
    silent.channel.close()


def test_call_that_says_nothing_is_cut_off_in_time(monkeypatch: pytest.MonkeyPatch, half_open: HalfOpen) -> None:
    monkeypatch.setattr(listener, "MESSAGE_TIMEOUT_S", 0.2)
    with serve(WidePolicy(), ANYWHERE) as server:
        client = RobotCalls(server.uris[0])
        client.begin()
        for name in ("SendObservations", "Ready"):
            assert half_open(client, name).exception(WAIT_S).code() is grpc.StatusCode.CANCELLED
        client.begin()  # Whoever hangs in the middle of an observation is gone.
        client.send(0)
        client.expect(0)
        client.channel.close()


def test_waiting_calls_of_one_client_are_bounded(server: Server) -> None:
    greedy = RobotCalls(server.uris[0], 1)
    greedy.begin()
    waiting = [greedy.stub.GetActions.future(services_pb2.Empty(), timeout=WAIT_S) for _ in range(100)]
    expect_service(server)
    codes = [call.code() for call in waiting]
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 90
    greedy.channel.close()


@pytest.mark.parametrize("size", [2 << 20, 1, 0])
def test_stream_that_is_too_long_is_refused_before_it_is_taken(server: Server, size: int) -> None:
    taken = 0

    def pieces() -> Iterator[services_pb2.Observation]:
        nonlocal taken
        while taken < 10_000:
            taken += 1
            yield services_pb2.Observation(transfer_state="TRANSFER_MIDDLE", data=b"x" * size)

    client = RobotCalls(server.uris[0])
    client.begin()
    with pytest.raises(grpc.RpcError, match="more than the"):
        client.stub.SendObservations(pieces(), timeout=WAIT_S)
    assert taken < 10_000
    client.send(0)
    client.expect(0)
    client.channel.close()


# Who can reach the server.


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False), ("[::1]", False)])
def test_what_others_can_reach_says_so_on_one_line(host: str, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), serve(WidePolicy(), f"grpc://{host}:0", link=LinkOptions(insecure=True)):
        lines = [record.getMessage() for record in caplog.records if "other machines" in record.getMessage()]
    assert len(lines) == warns


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_what_others_can_reach_is_not_served_to_everybody(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--grpc\.token_file or --tls\.cert and --tls\.key, or say --insecure=true"):
        serve(WidePolicy(), f"grpc://{host}:0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "r"))
    return tmp_path / "r"


def test_server_of_ones_own_is_nobody_elses(folder: Path) -> None:
    address = GrpcListener.unused_address()
    path = Path(address.removeprefix("unix:"))
    assert path.parent == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    with serve(WidePolicy(), f"grpc://{address}") as server:
        expect_service(server)
        GrpcListener.remove_what_is_left(address)
        assert path.is_socket()
        with pytest.raises(ConfigError, match="already listening"):
            serve(WidePolicy(), f"grpc://{address}")
    assert not path.exists()


def test_socket_of_a_server_that_was_killed_is_removed(folder: Path) -> None:
    address = GrpcListener.unused_address()
    path = Path(address.removeprefix("unix:"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    GrpcListener.remove_what_is_left(address)
    assert not path.exists()
    GrpcListener.remove_what_is_left(address)
    GrpcListener.remove_what_is_left("127.0.0.1:1")
