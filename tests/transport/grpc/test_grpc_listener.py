"""What only gRPC's server half has: sessions told apart by their connection, and clients that never say goodbye."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from lerobot.async_inference.helpers import TimedObservation
from lerobot.transport import services_pb2
from robot_calls import RobotCalls, make_robot

from async_delta_inference.errors import ConfigError, SetupRefusedError
from async_delta_inference.transport import (
    FunctionPolicy,
    GrpcOptions,
    LinkOptions,
    Observation,
    ObservationFeatures,
    PolicyNeeds,
    Server,
    SessionSpec,
    connect,
    serve,
)
from async_delta_inference.transport.grpc.server import session as server_session
from async_delta_inference.transport.grpc.server.connections import TcpConnections
from async_delta_inference.transport.grpc.wire import raw_observation
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ContractClient,
    ScriptedPolicy,
    ServedPeer,
    contract_observation,
    eventually,
    expect_answer,
)
from async_delta_inference.transport.testing.commands import Remote

FEATURES = CONTRACT_POLICY.features
ANYWHERE = "grpc://127.0.0.1:0"
LEROBOT = GrpcOptions(dialect="lerobot")


class WidePolicy(ScriptedPolicy):
    """The scripted policy, which also says how long its actions are: RobotClient cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.ask_for(PolicyNeeds("the scripted policy", action_dim=3))


@pytest.fixture
def policy() -> WidePolicy:
    return WidePolicy()


@pytest.fixture
def server(policy: WidePolicy) -> Iterator[Server]:
    with serve(policy, ANYWHERE, max_sessions=3) as server:
        yield server
        policy.release()


@pytest.fixture
def robot(server: Server) -> Iterator[Callable[[int], RobotCalls]]:
    """Makes clients of LeRobot's protocol."""
    robots: list[RobotCalls] = []

    def make(number: int = 0) -> RobotCalls:
        robots.append(RobotCalls(server.uris[0], number))
        return robots[-1]

    yield make
    for made in robots:
        made.channel.close()


Make = Callable[..., RobotCalls]


def test_sessions_of_two_connections_are_two(robot: Make) -> None:
    one, other = robot(1), robot(2)
    one.begin()
    one.send(4)
    other.begin()  # resets nobody but itself
    other.send(7)
    one.expect(4)
    other.expect(7)


def test_ready_begins_anew_and_touches_nobody_else(robot: Make, policy: WidePolicy) -> None:
    one, other = robot(1), robot(2)
    one.begin()
    other.begin()
    policy.hold()
    other.send(3)
    one.ready()
    eventually(lambda: [session.closed for session in policy.sessions()] in ([1, 0], [0, 0]))
    policy.release()
    other.expect(3)
    eventually(lambda: [session.closed for session in policy.sessions()] == [1, 0])
    with pytest.raises(grpc.RpcError, match="call Ready and SendPolicyInstructions first") as info:
        one.send(5)
    assert info.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    one.begin()
    one.send(0)
    one.expect(0)


def test_instructions_replace_the_session(robot: Make, policy: WidePolicy) -> None:
    client = robot()
    for timestep in range(5):  # more than there are seats
        client.set_up()
        client.send(timestep)
        client.expect(timestep)
    eventually(lambda: [session.closed for session in policy.sessions()] == [1, 1, 1, 1, 0])


def test_own_clients_share_neither_sessions_nor_answers_over_a_unix_socket(tmp_path: Path) -> None:
    with serve(ScriptedPolicy(), f"grpc://unix:{tmp_path}/socket") as server:
        (uri,) = server.uris
        with connect(uri, CONTRACT_POLICY) as one, connect(uri, CONTRACT_POLICY) as other:
            for timestep in range(10):
                one.send_observation(contract_observation(timestep, client=1))
                other.send_observation(contract_observation(timestep + 100, client=2))
                expect_answer(one.receive_actions(WAIT_S), timestep, 1)
                expect_answer(other.receive_actions(WAIT_S), timestep + 100, 2)
    assert not list(tmp_path.iterdir())


# What RobotClient is told.


def test_nothing_is_an_empty_reply(robot: Make) -> None:
    client = robot()
    client.begin()
    assert client.ask() == []


def test_observation_that_is_under_way_keeps_the_call_waiting(robot: Make, policy: WidePolicy) -> None:
    client = robot()
    client.begin()
    policy.hold()
    client.send(0)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.expect, 0)
        with pytest.raises(TimeoutError):
            asked.result(timeout=3.0)  # longer than a call waits when nothing is owed
        policy.release()
        asked.result(WAIT_S)


def test_policy_error_arrives_with_its_reason_and_the_session_goes_on(robot: Make, policy: WidePolicy) -> None:
    client = robot()
    client.begin()
    policy.fail_next("the policy broke: " + "ü" * 5000)
    client.send(0)
    with pytest.raises(grpc.RpcError, match=r"Exception calling application: .*the policy broke") as info:
        client.ask()
    assert info.value.code() is grpc.StatusCode.UNKNOWN
    client.send(1)
    client.expect(1)


def test_observation_that_was_answered_is_left_out_unless_it_must_go(robot: Make, policy: WidePolicy) -> None:
    client = robot()
    client.begin()
    client.send(2)
    client.expect(2)
    client.send(2, must_go=False)
    assert client.ask() == []
    client.send(2, must_go=True)
    client.expect(2)


def test_observation_that_the_policy_passes_over_is_an_empty_reply(robot: Make) -> None:
    client = robot()
    client.begin()
    client.send(2)
    client.expect(2)
    observation = contract_observation(3)
    observation.state[0] = 2.0
    raw = raw_observation(observation, FEATURES)
    client.send_bytes(pickle.dumps(TimedObservation(1003.0, 3, raw, False)))
    assert client.ask() == []


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"garbage", "the client sent"), (b"x" * 3_000_000, "more than the .* bytes that an observation has")],
)
def test_bad_observation_is_refused_and_the_session_goes_on(robot: Make, data: bytes, complaint: str) -> None:
    client = robot()
    client.begin()
    with pytest.raises(grpc.RpcError, match=complaint) as info:
        client.send_bytes(data)
    assert info.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    client.send(0)
    client.expect(0)


@pytest.mark.parametrize("states", [["TRANSFER_MIDDLE"], ["TRANSFER_BEGIN", "TRANSFER_MIDDLE"], []])
def test_observation_that_does_not_end_is_refused(robot: Make, states: list[str]) -> None:
    client = robot()
    client.begin()
    pieces = (services_pb2.Observation(transfer_state=state, data=b"x") for state in states)
    with pytest.raises(grpc.RpcError, match="does not end"):
        client.stub.SendObservations(pieces, timeout=WAIT_S)


def test_observation_in_pieces_is_joined_and_a_new_beginning_discards(robot: Make) -> None:
    client = robot()
    client.begin()
    raw = raw_observation(contract_observation(8), FEATURES)
    data = pickle.dumps(TimedObservation(1008.0, 8, raw, True))
    pieces = [
        ("TRANSFER_BEGIN", b"of another one"),
        ("TRANSFER_BEGIN", data[:100]),
        ("TRANSFER_MIDDLE", data[100:200]),
        ("TRANSFER_END", data[200:]),
    ]
    observations = (services_pb2.Observation(transfer_state=state, data=piece) for state, piece in pieces)
    client.stub.SendObservations(observations, timeout=WAIT_S)
    client.expect(8)


def test_images_larger_than_a_message_are_served() -> None:
    features = ObservationFeatures(("x",), {"wide": (1200, 1600, 3)})

    def brightest(observation: Observation) -> np.ndarray[Any, Any]:
        return np.full((1, 1), observation.images["wide"].max(), np.float32)

    with serve(brightest, ANYWHERE) as server, connect(server.uris[0], SessionSpec("", "", 1, features, 1)) as client:
        observation = Observation.empty(features)
        observation.images["wide"][:] = 77
        observation.state[:] = 0.0
        client.send_observation(observation)
        chunk = client.receive_actions(WAIT_S)
    assert chunk is not None
    assert chunk.actions.item() == 77


# Refusals.


def test_policy_that_does_not_say_how_long_its_actions_are_refuses_robots() -> None:
    with serve(lambda observation: np.zeros((1, 3), np.float32), ANYWHERE) as server:
        robot = RobotCalls(server.uris[0])
        with pytest.raises(grpc.RpcError, match=r"Exception calling application: .*PolicyNeeds\.action_dim") as info:
            robot.begin()
        assert info.value.code() is grpc.StatusCode.UNKNOWN
        robot.channel.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"policy_type": "nonsense"}, "nonsense"),
        ({"policy_type": 3}, "policy_type"),
        ({"actions_per_chunk": 0}, "actions_per_chunk"),
        ({"lerobot_features": {"observation.audio": {}}}, "observation.audio"),
    ],
)
def test_refusal_says_why_and_takes_no_seat(robot: Make, server: Server, changes: dict[str, Any], reason: str) -> None:
    for _ in range(5):  # more than there are seats
        with pytest.raises(grpc.RpcError, match=f"Exception calling application: .*{reason}"):
            robot().set_up(**changes)
    with connect(server.uris[0], CONTRACT_POLICY):
        pass


def test_needs_that_are_not_met_are_named(robot: Make, policy: WidePolicy) -> None:
    policy.ask_for(PolicyNeeds("a policy for two arms", action_dim=14, state_dim=14))
    with pytest.raises(grpc.RpcError, match="state has 4 elements, the policy a policy for two arms has 14"):
        robot().begin()


def test_seats_are_bounded_and_a_robot_that_stops_frees_its_own(robot: Make, server: Server) -> None:
    robots = [robot(number) for number in range(3)]
    for one in robots:
        one.begin()
    with pytest.raises(grpc.RpcError, match="3 sessions"):
        robot(3).begin()
    with pytest.raises(SetupRefusedError, match="3 sessions"):
        connect(server.uris[0], CONTRACT_POLICY)
    robots[1].channel.close()  # as RobotClient.stop() does
    latecomer = robot(4)

    def has_come() -> bool:
        try:
            latecomer.begin()
        except grpc.RpcError:
            return False
        return True

    eventually(has_come)  # the kernel closes a connection in its own time
    latecomer.send(0)
    latecomer.expect(0)
    robots[0].send(0)
    robots[0].expect(0)


# Who goes away.


def test_robot_that_is_killed_while_idle_frees_its_seat() -> None:
    """No call of it is under way, so gRPC says nothing: the kernel's table of connections does."""
    with serve(WidePolicy(), ANYWHERE, max_sessions=1) as server:
        robot = Remote("grpc", make_robot, server.uris[0])
        robot.ask("begin")
        with pytest.raises(SetupRefusedError, match="1 session"):
            connect(server.uris[0], CONTRACT_POLICY)
        robot.kill()
        with connect(server.uris[0], CONTRACT_POLICY) as client:
            client.send_observation(contract_observation(0))
            expect_answer(client.receive_actions(WAIT_S), 0)


@pytest.mark.parametrize("moment", ["idle", "being answered"])
def test_own_client_that_is_killed_frees_its_seat_at_once(moment: str) -> None:
    with ServedPeer("grpc", max_sessions=1) as peer:
        with ContractClient(peer.uri, 1) as client:
            if moment == "being answered":
                peer.hold()
                client.send(0)
                eventually(lambda: peer.served() == [(1, 0)])
            client.kill()
        peer.release()
        with connect(peer.uri, CONTRACT_POLICY) as successor:
            successor.send_observation(contract_observation(5))
            expect_answer(successor.receive_actions(WAIT_S), 5)
        assert peer.sessions()[0].closed == 1


def test_robot_that_goes_away_while_it_waits_frees_its_seat(robot: Make, policy: WidePolicy) -> None:
    client = robot()
    client.begin()
    policy.hold()
    waiting = client.stub.GetActions.future(services_pb2.Empty(), timeout=WAIT_S)
    client.send(0)
    eventually(lambda: policy.batches() == [[(0, 0)]])
    client.channel.close()
    assert waiting.code() is grpc.StatusCode.CANCELLED
    policy.release()
    robot(1).begin()  # Whatever the server had heard of the waiting call: somebody new makes it look.
    eventually(lambda: [session.closed for session in policy.sessions()] == [1, 0])


def test_call_that_reaches_its_own_deadline_keeps_the_session(robot: Make) -> None:
    client = robot()
    client.begin()
    with pytest.raises(grpc.RpcError) as info:
        client.stub.GetActions(services_pb2.Empty(), timeout=0.2)
    assert info.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    client.send(0)
    client.expect(0)  # and the call that nobody waits for any more has not taken the answer


def test_client_of_ours_is_given_up_sooner_as_it_always_has_a_call_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_session, "_LONGEST_SILENCE_OF_OURS_S", 0.0)
    somewhere = TcpConnections(0)
    ours, robot = (
        server_session.GrpcSession(CONTRACT_POLICY, lambda: None, "unix:", somewhere, is_ours=is_ours)
        for is_ours in (True, False)
    )
    eventually(ours.has_left)
    assert not robot.has_left()
    assert ours.call_begins("unix:")
    assert not ours.has_left()


def test_robot_on_a_unix_socket_frees_its_seat_when_it_was_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_session, "_LONGEST_SILENCE_S", 0.2)
    with serve(WidePolicy(), f"grpc://unix:{tmp_path}/socket", max_sessions=1) as server:
        robot = RobotCalls(server.uris[0])
        robot.begin()
        robot.channel.close()

        def has_come() -> bool:
            try:
                connect(server.uris[0], CONTRACT_POLICY).close()
            except SetupRefusedError:
                return False
            return True

        eventually(has_come)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::]"])
def test_connections_are_known_by_the_name_that_grpc_gives_them(host: str) -> None:
    policy = WidePolicy()
    with serve(policy, f"grpc://{host}:0", max_sessions=1, link=LinkOptions(LEROBOT, insecure=True)) as server:
        port = int(server.uris[0].rpartition(":")[2])
        peers = []
        for client_host in ("127.0.0.1", "[::1]"):
            if client_host != host and host != "[::]":
                continue
            robot = RobotCalls(f"grpc://{client_host}:{port}")
            robot.begin()
            with pytest.raises(SetupRefusedError) as info:
                connect(f"grpc://{client_host}:{port}", CONTRACT_POLICY)
            peers += re.findall(r"the client at (\S+?)\)", str(info.value))
            assert TcpConnections(port).is_open(peers[-1])
            robot.ready()
            robot.channel.close()
        eventually(lambda: not any(TcpConnections(port).is_open(peer) for peer in peers))


def test_what_is_no_tcp_connection_is_not_known() -> None:
    assert TcpConnections(1).is_open("unix:") is None
    assert TcpConnections(1).is_open("ipv4:127.0.0.1:5") is False


# Listening.


def test_taken_port_is_refused(server: Server) -> None:
    with pytest.raises(ConfigError, match="is it taken"):
        serve(ScriptedPolicy(), server.uris[0])


@pytest.mark.parametrize("address", ["127.0.0.1", "host:port", "127.0.0.1:65536", ":8080", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="write host:port"):
        serve(ScriptedPolicy(), f"grpc://{address}")


def test_server_that_is_stopped_ends_calls_and_stops_twice(policy: WidePolicy) -> None:
    server = serve(policy, ANYWHERE)
    robot = RobotCalls(server.uris[0])
    robot.begin()
    waiting = robot.stub.GetActions.future(services_pb2.Empty(), timeout=WAIT_S)
    eventually(lambda: bool(policy.sessions()))
    server.stop()
    server.stop()
    assert waiting.exception(WAIT_S).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    robot.channel.close()


def test_backend_loads_no_policy_server_of_upstreams(server: Server) -> None:
    """That would take half a minute."""
    robot = Remote("grpc", make_robot, server.uris[0])
    assert "lerobot.async_inference.policy_server" not in robot.ask("modules")
    robot.kill()


def test_importing_the_transports_loads_neither_grpc_nor_torch() -> None:
    code = (
        "import sys, async_delta_inference.transport;"
        "assert not {'grpc', 'torch', 'lerobot'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_function_policy_says_what_it_is() -> None:
    def controller(observation: Observation) -> np.ndarray[Any, Any]:
        return np.zeros((1, 3), np.float32)

    description = "ü" * 5000
    with (
        serve(FunctionPolicy(controller, description), ANYWHERE, link=LinkOptions(LEROBOT)) as server,
        connect(server.uris[0], CONTRACT_POLICY) as client,
    ):
        assert client.description == "ü" * 500


def test_session_whose_policy_cannot_be_opened_is_refused_and_forgotten(robot: Make, policy: WidePolicy) -> None:
    client = robot()
    policy.fail_open("no such weights")
    with pytest.raises(grpc.RpcError, match=r"Exception calling application: .*no such weights"):
        client.begin()
    with pytest.raises(grpc.RpcError, match="call Ready and SendPolicyInstructions first"):
        client.send(0)
    client.begin()
    client.send(0)
    client.expect(0)


def test_client_of_a_session_that_the_server_ended_is_told_why(robot: Make, server: Server) -> None:
    client = robot()
    client.begin()
    server.host.stop()
    for call in (client.ask, lambda: client.send(0)):
        with pytest.raises(grpc.RpcError, match="the server was stopped") as info:
            call()
        assert info.value.code() is grpc.StatusCode.UNAVAILABLE
