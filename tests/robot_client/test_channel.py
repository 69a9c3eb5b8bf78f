"""LeRobot's own RobotClient, unmodified, over shared memory, on a function that is served by our server."""

from __future__ import annotations

import logging
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import draccus
import grpc
import numpy as np
import pytest
from fake_robot import CLIENT_MODULE, check_performed, make_robot, robots_policy
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2
from lerobot.transport.services_pb2_grpc import AsyncInferenceStub
from lerobot.transport.utils import send_bytes_in_chunks

from async_delta_inference.errors import PeerGoneError, PolicyError, TransportClosed
from async_delta_inference.robot_client import TransportChannel, install
from async_delta_inference.robot_client import cli as command
from async_delta_inference.transport import (
    FunctionPolicy,
    Observation,
    PolicyNeeds,
    SessionSpec,
    TransportOptions,
    serve,
)
from async_delta_inference.transport.registry import backend

ROBOT = 3
SHORT = TransportOptions(connect_timeout_s=0.1)
EMPTY = services_pb2.Empty()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc, "insecure_channel", grpc.insecure_channel)
    install()


@pytest.fixture
def uri() -> str:
    return f"shm://{backend('shm').listener.unused_address()}"


def answer(observation: Observation) -> np.ndarray[Any, Any]:
    return np.full((2, 2), observation.timestep, np.float32)


def set_up(stub: Any, **changes: Any) -> None:
    features = {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["one", "two"]}}
    fields = {
        "policy_type": "act",
        "pretrained_name_or_path": "served",
        "lerobot_features": features,
        "actions_per_chunk": 2,
    }
    stub.Ready(EMPTY)
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(RemotePolicyConfig(**fields | changes))))


def send(stub: Any, timestep: int, must_go: bool = True) -> None:
    raw = {"one": 1.0, "two": 2.0, "task": ""}
    data = pickle.dumps(TimedObservation(1000.0 + timestep, timestep, raw, must_go))
    stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation))


def ask(stub: Any) -> list[int]:
    data = stub.GetActions(EMPTY).data
    return [action.get_timestep() for action in pickle.loads(data)] if data else []


@pytest.mark.usefixtures("installed")
def test_robot_performs_over_shared_memory_what_it_performs_over_grpc(tmp_path: Path, uri: str) -> None:
    run = make_robot(ROBOT, tmp_path)["run"]
    with serve(robots_policy(), "grpc://127.0.0.1:0", uri) as server:
        for served in server.uris:
            check_performed(ROBOT, run(served))


@pytest.mark.usefixtures("installed")
def test_only_addresses_of_transports_of_ours_are_taken(uri: str) -> None:
    install()
    with grpc.insecure_channel("unix:///nobody") as channel:
        assert isinstance(channel, grpc.Channel)
    assert isinstance(grpc.insecure_channel(uri), TransportChannel)


def test_server_that_is_not_there_is_an_error_that_robot_client_logs(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grpc, "insecure_channel", lambda target, options: TransportChannel(target, SHORT))
    with caplog.at_level(logging.ERROR), pytest.raises(AssertionError, match="the server refused"):
        make_robot(ROBOT, tmp_path)["run"](uri)
    assert "Failed to connect to policy server: no server answers at shm://" in caplog.text


def test_what_was_answered_is_asked_again_only_when_it_must_be(uri: str) -> None:
    channel = TransportChannel(uri)
    with serve(FunctionPolicy(answer, "f"), uri):
        stub = AsyncInferenceStub(channel)
        set_up(stub)
        send(stub, 4)
        assert ask(stub) == [4, 5]
        send(stub, 4, must_go=False)
        send(stub, 5, must_go=False)
        assert ask(stub) == [5, 6]
        send(stub, 5)
        assert ask(stub) == [5, 6]
        set_up(stub)  # Anew: timesteps begin where they like.
        send(stub, 0, must_go=False)
        assert ask(stub) == [0, 1]
        channel.close()


def test_errors_of_ours_are_errors_of_grpc(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(observation: Observation) -> np.ndarray[Any, Any]:
        raise RuntimeError("no idea")

    channel = TransportChannel(uri, SHORT)
    stub = AsyncInferenceStub(channel)
    with pytest.raises(grpc.RpcError, match="start") as no_session:
        send(stub, 0)
    with serve(FunctionPolicy(fail, "f", action_dim=2), uri):
        with pytest.raises(grpc.RpcError, match="neither observation"):
            set_up(stub, lerobot_features={"observation.audio": {"dtype": "float32"}})
        set_up(stub)
        send(stub, 0)
        with pytest.raises(grpc.RpcError, match="no idea") as failed:
            ask(stub)
    monkeypatch.setattr("async_delta_inference.robot_client.channel.PATIENCE_S", 0.01)
    with pytest.raises(grpc.RpcError, match="stopped") as gone:
        ask(stub)
    channel.close()
    with pytest.raises(grpc.RpcError, match="close"):
        set_up(stub)
    causes = [type(caught.value.__cause__) for caught in (no_session, failed, gone)]
    assert causes == [TransportClosed, PolicyError, PeerGoneError]


class Looking(FunctionPolicy):
    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        return PolicyNeeds("of one who remembers", n_obs_steps=2)


def test_policy_that_looks_at_several_observations_is_refused(uri: str) -> None:
    channel = TransportChannel(uri)
    with serve(Looking(answer), uri), pytest.raises(grpc.RpcError, match="2 successive observations"):
        set_up(AsyncInferenceStub(channel))
    channel.close()


def test_closing_ends_a_wait(uri: str) -> None:
    channel = TransportChannel(uri)
    with serve(FunctionPolicy(answer, "f"), uri):
        stub = AsyncInferenceStub(channel)
        set_up(stub)
        closing = threading.Timer(0.05, channel.close)
        closing.start()
        with pytest.raises(grpc.RpcError) as caught:
            ask(stub)
        closing.join()
    assert isinstance(caught.value.__cause__, TransportClosed)


def test_lerobot_without_robot_client_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, CLIENT_MODULE.__name__)
    monkeypatch.setattr("lerobot.async_inference.__path__", [])
    assert command.main([]) == 2
    error = capsys.readouterr().err
    assert "has no RobotClient (lerobot.async_inference.robot_client is missing)" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("installed")
def test_command_takes_lerobots_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    configs: list[Any] = []
    monkeypatch.setattr("lerobot.utils.import_utils.register_third_party_plugins", lambda: None)
    monkeypatch.setattr(CLIENT_MODULE, "async_client", configs.append)
    camera = "{type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}"
    flags = [
        *("--server_address=shm://robot", "--policy_type=act", "--pretrained_name_or_path=x"),
        *("--actions_per_chunk=50", "--robot.type=so101_follower", "--robot.port=/dev/null", "--robot.id=one"),
        f"--robot.cameras={{ front: {camera} }}",
    ]
    assert command.main(flags) == 0
    assert configs == [draccus.parse(CLIENT_MODULE.RobotClientConfig, args=flags)]
    assert command.main(flags[:1]) == 2
    assert capsys.readouterr().err.count("\n") == 1
