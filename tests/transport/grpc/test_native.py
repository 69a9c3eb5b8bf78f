"""Our own protocol over gRPC: which of the dialects is spoken, sessions that outlive a connection, images, imports."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import pytest
from robot_calls import RobotCalls
from tcp_relay import TcpRelay

from async_delta_inference.errors import ConfigError, ProtocolError, SetupRefusedError
from async_delta_inference.transport import (
    GrpcOptions,
    LinkOptions,
    Observation,
    ObservationFeatures,
    Server,
    SessionSpec,
    TransportOptions,
    connect,
    open_transport,
    serve,
)
from async_delta_inference.transport.grpc import GrpcListener, GrpcTransport, native
from async_delta_inference.transport.grpc.server import native_service
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
    eventually,
    expect_answer,
)

ANYWHERE = "grpc://127.0.0.1:0"


def dialect(name: str, **more: str) -> LinkOptions:
    return LinkOptions(GrpcOptions(dialect=name, **more))


def asking_for(name: str, **more: str) -> TransportOptions:
    return TransportOptions(connect_timeout_s=WAIT_S, link=dialect(name, **more))


@pytest.fixture
def policy() -> ScriptedPolicy:
    return ScriptedPolicy()


@pytest.fixture
def server(policy: ScriptedPolicy) -> Iterator[Server]:
    with serve(policy, ANYWHERE) as server:
        yield server
        policy.release()


# What it is.


def test_messages_are_those_of_the_proto_file() -> None:
    text = files("async_delta_inference.transport.grpc").joinpath("native.proto").read_text()
    assert re.search(r"package (.*);", text).group(1) == native.PACKAGE
    described = {}
    for name, body in re.findall(r"message (\w+) {(.*?)\n}", text, re.DOTALL):
        fields = re.findall(r"^  ((?:repeated )?\w+) (\w+) = (\d+);", body, re.MULTILINE)
        described[name] = {field: (int(number), kind) for kind, field, number in fields}
    assert described == native.MESSAGES


def test_backend_loads_neither_lerobot_nor_torch() -> None:
    """Both halves, in the dialect that LeRobot's own classes speak, too."""
    code = (
        "import sys\n"
        "from async_delta_inference.transport import *\n"
        "from async_delta_inference.transport.testing import *\n"
        "for name in ('native', 'lerobot'):\n"
        "    link = LinkOptions(GrpcOptions(dialect=name))\n"
        "    with serve(ScriptedPolicy(), 'grpc://127.0.0.1:0', link=link) as server, \\\n"
        "            connect(server.uris[0], CONTRACT_POLICY) as client:\n"
        "        client.send_observation(contract_observation(1))\n"
        "        expect_answer(client.receive_actions(60.0), 1)\n"
        "        assert client.dialect == name\n"
        "assert not {'torch', 'lerobot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Which dialect.


@pytest.mark.parametrize(
    ("servers", "clients", "spoken"),
    [
        ("auto", "auto", "native"),
        ("auto", "lerobot", "lerobot"),
        ("lerobot", "auto", "lerobot"),
        ("native", "auto", "native"),
    ],
)
def test_client_speaks_what_both_sides_do(servers: str, clients: str, spoken: str) -> None:
    with (
        serve(ScriptedPolicy(), ANYWHERE, link=dialect(servers)) as server,
        connect(server.uris[0], CONTRACT_POLICY, asking_for(clients)) as client,
    ):
        assert isinstance(client, GrpcTransport)
        assert client.dialect == spoken
        client.send_observation(contract_observation(3))
        expect_answer(client.receive_actions(WAIT_S), 3)


@pytest.mark.parametrize(
    ("servers", "clients", "more", "complaint"),
    [
        ("lerobot", "native", {}, "does not speak our own protocol"),
        ("native", "lerobot", {}, "not a PolicyServer"),
        ("lerobot", "auto", {"image_encoding": "png"}, "does not speak our own protocol"),
    ],
)
def test_server_that_does_not_speak_what_was_asked_for_is_refused(
    servers: str, clients: str, more: dict[str, str], complaint: str
) -> None:
    with (
        serve(ScriptedPolicy(), ANYWHERE, link=dialect(servers)) as server,
        pytest.raises(ProtocolError, match=complaint),
    ):
        connect(server.uris[0], CONTRACT_POLICY, asking_for(clients, **more))


@pytest.mark.parametrize(
    "options",
    [{"dialect": "pigeon"}, {"image_encoding": "gif"}, {"dialect": "lerobot", "image_encoding": "png"}],
)
def test_options_that_cannot_work_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"--grpc\."):
        GrpcOptions(**options)


def test_robot_is_served_beside_our_own_client(server: Server, policy: ScriptedPolicy) -> None:
    from async_delta_inference.transport import PolicyNeeds

    policy.ask_for(PolicyNeeds("scripted", action_dim=3))
    robot = RobotCalls(server.uris[0], 2)
    robot.begin()
    with connect(server.uris[0], CONTRACT_POLICY) as client:
        robot.send(4)
        client.send_observation(contract_observation(9))
        robot.expect(4)
        expect_answer(client.receive_actions(WAIT_S), 9)
    robot.channel.close()


# A connection that breaks.


@pytest.fixture
def relayed(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpRelay]:
    """The server behind a network that can break."""
    monkeypatch.setattr(native_service, "RESUME_ON_THIS_MACHINE_S", WAIT_S)
    with TcpRelay(int(server.uris[0].rpartition(":")[2])) as relay:
        yield relay


def test_session_goes_on_after_the_connection_broke(relayed: TcpRelay, policy: ScriptedPolicy) -> None:
    options = TransportOptions(reconnect_timeout_s=WAIT_S)
    with connect(f"grpc://{relayed.address}", CONTRACT_POLICY, options) as client:
        for timestep in range(12):
            if timestep % 4 == 1:
                relayed.break_off()
            client.send_observation(contract_observation(timestep, episode=5))
            if timestep % 4 == 2:
                relayed.break_off()
            expect_answer(client.receive_actions(WAIT_S), timestep)
        (session,) = policy.sessions()
        assert session.episodes() == [(5, "task 0")]
    eventually(lambda: [session.closed for session in policy.sessions()] == [1])


def test_answer_that_was_computed_meanwhile_is_not_lost(relayed: TcpRelay, policy: ScriptedPolicy) -> None:
    options = TransportOptions(reconnect_timeout_s=WAIT_S)
    with connect(f"grpc://{relayed.address}", CONTRACT_POLICY, options) as client:
        policy.hold()
        client.send_observation(contract_observation(0))
        eventually(lambda: len(policy.batches()) == 1)
        relayed.break_off()
        policy.release()
        expect_answer(client.receive_actions(WAIT_S), 0)
        assert policy.batches() == [[(0, 0)]]
        client.send_observation(contract_observation(1))
        expect_answer(client.receive_actions(WAIT_S), 1)


def test_session_whose_client_does_not_come_back_is_closed(
    relayed: TcpRelay, policy: ScriptedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_service, "RESUME_ON_THIS_MACHINE_S", 0.2)
    client = connect(f"grpc://{relayed.address}", CONTRACT_POLICY, TransportOptions(reconnect_timeout_s=0.0))
    relayed.break_off()
    eventually(lambda: [session.closed for session in policy.sessions()] == [1])
    client.close()


def test_seat_of_a_session_without_a_client_is_given_away(
    policy: ScriptedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_service, "RESUME_ON_THIS_MACHINE_S", WAIT_S)
    with (
        serve(policy, ANYWHERE, max_sessions=1) as server,
        TcpRelay(int(server.uris[0].rpartition(":")[2])) as relay,
    ):
        first = connect(f"grpc://{relay.address}", CONTRACT_POLICY, TransportOptions(reconnect_timeout_s=0.0))
        relay.break_off()

        def has_come() -> bool:
            try:
                connect(server.uris[0], CONTRACT_POLICY).close()
            except SetupRefusedError:
                return False
            return True

        eventually(has_come)
        first.close()


def test_client_may_be_closed_while_it_restores_the_session(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    restoring = threading.Event()

    class Late(threading.Thread):
        def start(self) -> None:
            if self.name == "grpc-transport-reader":
                restoring.set()
                time.sleep(0.2)
            super().start()

    with TcpRelay(int(server.uris[0].rpartition(":")[2])) as relay:
        client = connect(f"grpc://{relay.address}", CONTRACT_POLICY)
        monkeypatch.setattr(threading, "Thread", Late)
        relay.break_off()
        assert restoring.wait(WAIT_S)
        client.close()


def test_replies_are_kept_until_the_client_has_them(server: Server) -> None:
    (listener,) = server.listeners
    assert isinstance(listener, GrpcListener)
    with connect(server.uris[0], CONTRACT_POLICY) as client:
        for timestep in range(10):
            client.send_observation(contract_observation(timestep))
            expect_answer(client.receive_actions(WAIT_S), timestep)
        (session,) = listener._services[0]._sessions.values()
        assert [number for number, _ in session._sent] == [10]


def test_nothing_is_kept_of_sessions_that_are_over(policy: ScriptedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_service, "RESUME_ON_THIS_MACHINE_S", 0.2)
    with (
        serve(policy, ANYWHERE, max_sessions=1) as server,
        TcpRelay(int(server.uris[0].rpartition(":")[2])) as relay,
    ):
        (listener,) = server.listeners
        assert isinstance(listener, GrpcListener)
        service = listener._services[0]
        for _ in range(3):
            client = connect(f"grpc://{relay.address}", CONTRACT_POLICY, TransportOptions(reconnect_timeout_s=0.0))
            relay.break_off()
            client.close()
            eventually(lambda: policy.sessions()[-1].closed == 1)
            connect(server.uris[0], CONTRACT_POLICY).close()
        eventually(lambda: not service._sessions)


# Frames.

FEATURES = ObservationFeatures(("x",), {"wide": (48, 64, 3), "grey": (16, 16, 1)})
SPEC = SessionSpec("", "", 1, FEATURES, 2)


def means(observation: Observation) -> np.ndarray:
    return np.array([[image.astype(np.float64).mean() for image in observation.images.values()]], np.float32)


@pytest.mark.parametrize(("encoding", "tolerance"), [("raw", 0.0), ("png", 0.0), ("jpeg", 2.0)])
def test_frames_arrive_as_they_were_encoded(encoding: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    with (
        serve(means, ANYWHERE) as server,
        connect(server.uris[0], SPEC, asking_for("auto", image_encoding=encoding)) as client,
    ):
        for timestep in range(3):
            observation = Observation.empty(FEATURES)
            observation.state[:] = 0.0
            for image in observation.images.values():
                image[:] = rng.integers(0, 255, image.shape)
            observation.timestep = timestep
            client.send_observation(observation)
            chunk = client.receive_actions(WAIT_S)
            assert chunk is not None
            np.testing.assert_allclose(chunk.actions, means(observation), atol=tolerance)
        assert (encoding in client.spoken) == (encoding != "raw")


def test_encoding_that_lacks_the_channels_is_refused_before_anything_is_sent(server: Server) -> None:
    features = ObservationFeatures(("x",), {"depth": (4, 4, 2)})
    with (
        open_transport(server.uris[0], asking_for("auto", image_encoding="jpeg")) as client,
        pytest.raises(ConfigError, match="2 channels"),
    ):
        client.connect(SessionSpec("", "", 1, features, 2))
