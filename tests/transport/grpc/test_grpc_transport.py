"""What only gRPC's client half has: a server that restarts, statuses that become errors, other people's servers."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from lerobot.async_inference.helpers import TimedAction
from lerobot.transport import services_pb2
from lerobot.transport.services_pb2_grpc import AsyncInferenceServicer, add_AsyncInferenceServicer_to_server

from async_delta_inference.errors import (
    ConfigError,
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport import (
    GrpcOptions,
    LinkOptions,
    ObservationFeatures,
    SessionSpec,
    TransportOptions,
    connect,
    open_transport,
)
from async_delta_inference.transport.grpc.client.calls import map_call_error
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ServedPeer,
    contract_observation,
    eventually,
    expect_answer,
)

LEROBOT = LinkOptions(GrpcOptions(dialect="lerobot"))


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    """A Unix socket: an address that a restarted server can take again without a fixed port."""
    return f"unix:{tmp_path}/server.sock"


@pytest.mark.parametrize("link", [None, LEROBOT], ids=["native", "lerobot"])
def test_server_that_restarts_goes_on_answering(socket_path: str, link: LinkOptions | None) -> None:
    peer = ServedPeer("grpc", socket_path, link=link)
    options = TransportOptions(reconnect_timeout_s=WAIT_S)
    with open_transport(f"grpc://{socket_path}", options) as transport:
        transport.connect(CONTRACT_POLICY)
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        peer.hold()
        transport.send_observation(contract_observation(1))
        eventually(lambda: peer.seen() == [0, 1])
        peer.kill()
        restarted = ServedPeer("grpc", socket_path, link=link)
        try:
            # The observation that the dead server owed an answer to is sent again by the transport.
            expect_answer(transport.receive_actions(WAIT_S), 1)
            transport.send_observation(contract_observation(2))
            expect_answer(transport.receive_actions(WAIT_S), 2)
        finally:
            restarted.kill()


@pytest.mark.parametrize("link", [None, LEROBOT], ids=["native", "lerobot"])
def test_restart_while_idle_sets_the_policy_up_again(socket_path: str, link: LinkOptions | None) -> None:
    peer = ServedPeer("grpc", socket_path, link=link)
    options = TransportOptions(reconnect_timeout_s=WAIT_S)
    with open_transport(f"grpc://{socket_path}", options) as transport:
        transport.connect(CONTRACT_POLICY)
        peer.kill()
        restarted = ServedPeer("grpc", socket_path, link=link)
        try:
            transport.send_observation(contract_observation(3))
            expect_answer(transport.receive_actions(WAIT_S), 3)
        finally:
            restarted.kill()


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


HASTY = TransportOptions(connect_timeout_s=0.5, setup_timeout_s=0.5, inference_timeout_s=0.5)


def some_chunk(timestep: int = 0) -> bytes:
    return pickle.dumps([TimedAction(0.0, timestep, torch.zeros(3))])


class StubbornServicer(AsyncInferenceServicer):
    """PolicyServer's four calls, of which a test lets some hang or be broken off, and says what they answer. Stands for
    a server that is stuck in any of them, or sends what the real one cannot be made to send.
    """

    def __init__(self, hangs_in: str = "", breaks_off: int = 0, reply: bytes | None = None) -> None:
        self.calls: list[str] = []
        self.gone = threading.Event()
        self.hangs_in = hangs_in
        self.reply = some_chunk() if reply is None else reply
        self._breaks_off = breaks_off

    def _call(self, name: str, context: grpc.ServicerContext) -> services_pb2.Empty:
        self.calls.append(name)
        if name == self.hangs_in:
            self.gone.wait(WAIT_S)
        if self._breaks_off:
            self._breaks_off -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "on its way down")
        return services_pb2.Empty()

    def Ready(self, request: Any, context: grpc.ServicerContext) -> services_pb2.Empty:  # noqa: N802
        return self._call("Ready", context)

    def SendPolicyInstructions(self, request: Any, context: grpc.ServicerContext) -> services_pb2.Empty:  # noqa: N802
        return self._call("SendPolicyInstructions", context)

    def SendObservations(self, request_iterator: Any, context: grpc.ServicerContext) -> services_pb2.Empty:  # noqa: N802
        list(request_iterator)
        return self._call("SendObservations", context)

    def GetActions(self, request: Any, context: grpc.ServicerContext) -> services_pb2.Actions:  # noqa: N802
        self._call("GetActions", context)
        return services_pb2.Actions(data=self.reply)


class Service:
    """A servicer behind gRPC."""

    def __init__(self, servicer: AsyncInferenceServicer, address: str = "127.0.0.1:0") -> None:
        self._threads = futures.ThreadPoolExecutor(8)
        self._server = grpc.server(self._threads, options=[("grpc.so_reuseport", 0)])
        add_AsyncInferenceServicer_to_server(servicer, self._server)
        port = self._server.add_insecure_port(address)
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        self.uri = f"grpc://{self.address}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(1.0).wait()
        self._threads.shutdown()


@contextmanager
def served(servicer: StubbornServicer) -> Iterator[str]:
    service = Service(servicer)
    try:
        yield service.uri
    finally:
        servicer.gone.set()
        service.stop()


@pytest.mark.parametrize(
    ("call", "expected"), [("Ready", PeerUnreachableError), ("SendPolicyInstructions", TransportTimeout)]
)
def test_unlike_upstream_setting_up_has_a_deadline(call: str, expected: type[TransportError]) -> None:
    servicer = StubbornServicer(hangs_in=call)
    with served(servicer) as uri, open_transport(uri, HASTY) as transport, pytest.raises(expected):
        transport.connect(CONTRACT_POLICY)
    assert servicer.calls[-1] == call


@pytest.mark.parametrize("call", ["SendObservations", "GetActions"])
def test_unlike_upstream_an_answer_has_a_deadline(call: str) -> None:
    servicer = StubbornServicer(hangs_in=call)
    with served(servicer) as uri, open_transport(uri, HASTY) as transport:
        transport.connect(CONTRACT_POLICY)
        transport.send_observation(contract_observation(0))
        with pytest.raises(TransportTimeout):
            transport.receive_actions(WAIT_S)
        # Said once: that the call itself ran out of time is no second report.
        assert transport.receive_actions(1.0) is None
    assert call in servicer.calls


def test_unlike_upstream_sending_does_not_wait_for_the_server() -> None:
    """RobotClient's control loop waits until the server has taken the observation."""
    servicer = StubbornServicer(hangs_in="SendObservations")
    with served(servicer) as uri, open_transport(uri) as transport:
        transport.connect(CONTRACT_POLICY)
        transport.send_observation(contract_observation(0))
        eventually(lambda: servicer.calls[-1] == "SendObservations")
        for timestep in range(1, 20):
            transport.send_observation(contract_observation(timestep))
        servicer.hangs_in = ""
        servicer.gone.set()
        # The first one was under way, the newest waited here, and the server saw none of those between.
        eventually(lambda: servicer.calls.count("SendObservations") == 2)


def test_server_that_breaks_off_is_tried_again_within_the_window() -> None:
    """As one does that is asked while it goes down: its successor answers."""
    servicer = StubbornServicer(breaks_off=3)
    with served(servicer) as uri, open_transport(uri, TransportOptions(connect_timeout_s=WAIT_S)) as transport:
        transport.connect(CONTRACT_POLICY)
    assert servicer.calls == ["Ready"] * 4 + ["SendPolicyInstructions"]


def test_server_that_goes_on_breaking_off_is_unreachable() -> None:
    servicer = StubbornServicer(breaks_off=10**6)
    with (
        served(servicer) as uri,
        open_transport(uri, TransportOptions(connect_timeout_s=0.5)) as transport,
        pytest.raises(PeerUnreachableError, match=r"within 0\.5 s"),
    ):
        transport.connect(CONTRACT_POLICY)


def test_nothing_is_sent_to_a_server_that_is_not_set_up_again() -> None:
    service = Service(StubbornServicer())
    second = StubbornServicer(hangs_in="SendPolicyInstructions")
    try:
        with open_transport(service.uri, TransportOptions(reconnect_timeout_s=WAIT_S)) as transport:
            transport.connect(CONTRACT_POLICY)
            service.stop()
            service = Service(second, service.address)
            eventually(lambda: "SendPolicyInstructions" in second.calls)
            transport.send_observation(contract_observation(0))
            transport.receive_actions(0.3)
            assert "SendObservations" not in second.calls
            second.gone.set()
            assert transport.receive_actions(WAIT_S) is not None
    finally:
        second.gone.set()
        service.stop()
    assert second.calls.index("SendObservations") > second.calls.index("SendPolicyInstructions")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "unix"])
def test_proxy_is_not_asked_for_what_is_on_this_machine(
    host: str, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    servicer = StubbornServicer()
    with served(servicer) as uri:
        address = uri.replace("127.0.0.1", host)
        if host == "unix":
            service = Service(servicer, socket_path)
            address = service.uri
        with open_transport(address, TransportOptions(connect_timeout_s=WAIT_S)) as transport:
            transport.connect(CONTRACT_POLICY)
        if host == "unix":
            service.stop()
    assert servicer.calls == ["Ready", "SendPolicyInstructions"]


@pytest.mark.parametrize("address", ["127.0.0.1", "host:port", "127.0.0.1:0", "127.0.0.1:65536", ":8080", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="write host:port"):
        open_transport(f"grpc://{address}")


class Status(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> None:
        return None


EXPECTED: dict[grpc.StatusCode, type[TransportError]] = {
    grpc.StatusCode.UNAVAILABLE: PeerGoneError,
    grpc.StatusCode.FAILED_PRECONDITION: PeerGoneError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TransportTimeout,
    grpc.StatusCode.CANCELLED: TransportClosed,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.UNAUTHENTICATED: SetupRefusedError,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_becomes_an_error_of_ours(code: grpc.StatusCode) -> None:
    error = map_call_error(Status(code, "details"), "host:1", "session")
    assert type(error) is EXPECTED.get(code, ProtocolError)
    assert "host:1" in str(error)


def test_exception_in_the_server_is_named() -> None:
    status = Status(grpc.StatusCode.UNKNOWN, "Exception calling application: no such checkpoint")
    refused = map_call_error(status, "host:1", "setup")
    assert isinstance(refused, SetupRefusedError)
    assert str(refused).endswith("no such checkpoint")
    assert isinstance(map_call_error(status, "host:1", "session"), PolicyError)


def test_call_on_a_closed_channel_is_one_on_a_closed_transport() -> None:
    assert isinstance(map_call_error(ValueError("closed"), "host:1", "session"), TransportClosed)


# What another server may send.


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (pickle.dumps([TimedAction(0.0, 0, torch.full((3,), torch.nan))]), PolicyError),
        (pickle.dumps([TimedAction(10**400, 0, torch.zeros(3))]), ProtocolError),
        (pickle.dumps([TimedAction(float("nan"), 0, torch.zeros(3))]), ProtocolError),
        (pickle.dumps([TimedAction(0.0, 2**70, torch.zeros(3))]), ProtocolError),
        (pickle.dumps([TimedAction(0.0, True, torch.zeros(3))]), ProtocolError),
        (some_chunk(5), ProtocolError),
        (b"garbage", ProtocolError),
        (b"", PolicyError),
    ],
    ids=["nan", "huge timestamp", "nan timestamp", "huge timestep", "bool", "never sent", "garbage", "nothing"],
)
def test_reply_that_cannot_be_meant_is_an_error_at_once(reply: bytes, error: type[TransportError]) -> None:
    with served(StubbornServicer(reply=reply)) as uri, connect(uri, CONTRACT_POLICY) as transport:
        transport.send_observation(contract_observation(0))
        with pytest.raises(error):
            transport.receive_actions(WAIT_S)


def test_actions_that_are_not_finite_are_the_policys_error_and_the_session_goes_on() -> None:
    """PolicyServer sends on what the policy computes."""
    servicer = StubbornServicer(reply=pickle.dumps([TimedAction(0.0, 0, torch.tensor([0.0, torch.inf, 0.0]))]))
    with served(servicer) as uri, connect(uri, CONTRACT_POLICY) as transport:
        transport.send_observation(contract_observation(0))
        with pytest.raises(PolicyError, match="finite") as info:
            transport.receive_actions(WAIT_S)
        assert info.value.timestep == 0
        servicer.reply = some_chunk(1)
        transport.send_observation(contract_observation(1))
        chunk = transport.receive_actions(WAIT_S)
        assert chunk is not None
        np.testing.assert_array_equal(chunk.actions, np.zeros((1, 3)))


def test_policy_server_says_nothing_of_what_it_serves_nor_whom_else(caplog: pytest.LogCaptureFixture) -> None:
    with served(StubbornServicer()) as uri, connect(uri, CONTRACT_POLICY) as transport:
        assert transport.description == ""
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "is LeRobot's own, which has one policy for all its clients" in warning


def test_policy_server_is_not_given_what_it_would_take_for_the_robots_state() -> None:
    features = ObservationFeatures(("x", "environment_state.0"))
    with (
        served(StubbornServicer()) as uri,
        pytest.raises(SetupRefusedError, match="LeRobot's own, which cannot give a policy"),
    ):
        connect(uri, replace(CONTRACT_POLICY, features=features))


def test_late_answer_of_policy_servers_is_not_lost() -> None:
    servicer = StubbornServicer(hangs_in="GetActions")
    options = TransportOptions(inference_timeout_s=0.3)
    with served(servicer) as uri, connect(uri, CONTRACT_POLICY, options) as transport:
        transport.send_observation(contract_observation(0))
        with pytest.raises(TransportTimeout):
            transport.receive_actions(WAIT_S)
        servicer.gone.set()
        assert transport.receive_actions(WAIT_S) is not None


def test_server_that_is_lost_over_every_observation_is_given_up() -> None:
    class Crashing(StubbornServicer):
        def GetActions(self, request: Any, context: grpc.ServicerContext) -> services_pb2.Actions:  # noqa: N802
            self.calls.append("GetActions")
            context.abort(grpc.StatusCode.UNAVAILABLE, "crashed")

    servicer = Crashing()
    with served(servicer) as uri, connect(uri, CONTRACT_POLICY) as transport:
        transport.send_observation(contract_observation(0))
        with pytest.raises(PeerUnreachableError, match="5 times in a row"):
            transport.receive_actions(WAIT_S)
    assert servicer.calls.count("GetActions") == 5


def test_server_that_comes_back_and_refuses_ends_the_session() -> None:
    class Changed(StubbornServicer):
        def SendPolicyInstructions(self, request: Any, context: grpc.ServicerContext) -> services_pb2.Empty:  # noqa: N802
            raise ValueError("another policy is served now")

    service = Service(StubbornServicer())
    try:
        with connect(service.uri, CONTRACT_POLICY, TransportOptions(reconnect_timeout_s=WAIT_S)) as transport:
            service.stop()
            service = Service(Changed(), service.address)
            with pytest.raises(PeerGoneError, match="another policy is served now"):
                transport.receive_actions(WAIT_S)
            with pytest.raises(PeerGoneError, match="another policy is served now"):
                transport.send_observation(contract_observation(0))
    finally:
        service.stop()


def test_client_that_names_no_policy_asks_for_what_is_served() -> None:
    spec = SessionSpec("", "", 5, CONTRACT_POLICY.features, 3)
    with served(StubbornServicer()) as uri, connect(uri, spec) as transport:
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(WAIT_S) is not None


def test_whatever_a_thread_meets_the_caller_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("async_delta_inference.transport.grpc.client.lerobot_link.decode_actions", broken)
    with served(StubbornServicer()) as uri, connect(uri, CONTRACT_POLICY) as transport:
        transport.send_observation(contract_observation(0))
        with pytest.raises(ProtocolError, match="a fault of ours") as info:
            transport.receive_actions(WAIT_S)
        assert isinstance(info.value.__cause__, RuntimeError)


def test_replies_that_nobody_takes_are_bounded(socket_path: str) -> None:
    """The sender goes on; the server keeps what there is no room for here."""
    with ServedPeer("grpc", socket_path, link=LEROBOT) as peer, connect(peer.uri, CONTRACT_POLICY) as transport:
        for timestep in range(100):
            transport.send_observation(contract_observation(timestep))
            eventually(lambda timestep=timestep: timestep in peer.seen() or timestep in peer.waiting())
        seen = peer.seen()
        assert seen[-1] < 99
        for timestep in seen:
            expect_answer(transport.receive_actions(WAIT_S), timestep)
        expect_answer(transport.receive_actions(WAIT_S), 99)


def test_closing_during_setup_leaves_nothing() -> None:
    transport = open_transport("grpc://127.0.0.1:1", TransportOptions(connect_timeout_s=WAIT_S))
    closer = threading.Timer(0.1, transport.close)
    closer.start()
    with pytest.raises(TransportError):
        transport.connect(CONTRACT_POLICY)
    closer.join()
    assert transport.closed
