"""async-delta-serve on both transports in a process of its own: the same checkpoint gives the same bits over either."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_act import build_random_act

from async_delta_inference.errors import PeerGoneError, PolicyError, ProtocolError, SetupRefusedError, TransportError
from async_delta_inference.server_adapter.policy_host import PolicyHost
from async_delta_inference.server_adapter.shm_service import ShmService
from async_delta_inference.transport import Observation, ObservationFeatures, SessionSpec, Transport, open_transport
from async_delta_inference.transport.shm import handshake, rendezvous
from async_delta_inference.transport.shm.connection import Connection

FEATURES = ObservationFeatures(tuple(f"s{i}" for i in range(8)), {"image": (96, 96, 3), "image2": (64, 80, 3)})
COLUMNS = 7
START_TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_act(tmp_path_factory.mktemp("act"), FEATURES, COLUMNS, chunk_size=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The rendezvous of this module."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("r")
        path.chmod(0o700)
        patch.setenv(rendezvous.FOLDER_VARIABLE, str(path))
        yield path


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cwd")


@pytest.fixture(scope="module")
def uris(folder: Path, working_folder: Path) -> Iterator[dict[str, str]]:
    """One process that serves on both transports."""
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "async_delta_inference.server_adapter", "--transport=grpc,shm"]
    command += ["--server_address=127.0.0.1:0,shm://both", f"--announce_fd={write_fd}", "--exit_with_stdin=true"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[write_fd], cwd=working_folder
    )
    os.close(write_fd)
    with os.fdopen(read_fd) as announcement:
        lines = announcement.read().split()
    assert len(lines) == 2, "the server did not start"
    yield {uri.partition("://")[0]: uri for uri in lines}
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(START_TIMEOUT_S) == 0
    assert list(folder.iterdir()) == []


def spec(checkpoint: Path, **changes: Any) -> SessionSpec:
    fields = {"policy_type": "act", "actions_per_chunk": 10, "features": FEATURES, "action_dim": COLUMNS, **changes}
    return SessionSpec(pretrained_name_or_path=str(checkpoint), **fields)


def observe(timestep: int, **scalars: Any) -> Observation:
    rng = np.random.default_rng(timestep)
    observation = Observation.empty(FEATURES)
    observation.state[...] = rng.normal(size=8) * 3
    for image in observation.images.values():
        image[...] = rng.integers(0, 256, image.shape, np.uint8)
    observation.timestep, observation.task, observation.timestamp_s = timestep, "pick up the soup", 5.5
    for name, value in scalars.items():
        setattr(observation, name, value)
    return observation


def answers(transport: Transport, count: int, *, loaned: bool = False) -> list[bytes]:
    found = []
    for timestep in range(count):
        observation = observe(timestep, episode=timestep // 2)
        if loaned:
            own, observation = observation, transport.loan_observation()
            observation.state[...] = own.state
            for name, image in own.images.items():
                observation.images[name][...] = image
            observation.timestep, observation.task, observation.episode = own.timestep, own.task, own.episode
        transport.send_observation(observation)
        chunk = transport.receive_actions(60.0)
        assert chunk is not None
        assert chunk.timestep == timestep
        assert chunk.actions.shape == (10, COLUMNS)
        found.append(chunk.actions.tobytes())
    return found


def test_both_transports_give_the_same_bits(uris: dict[str, str], checkpoint: Path, working_folder: Path) -> None:
    results = {}
    for key, uri, loaned in (("grpc", uris["grpc"], False), ("shm", uris["shm"], False), ("loan", uris["shm"], True)):
        with open_transport(uri) as transport:
            transport.connect(spec(checkpoint))
            results[key] = answers(transport, 6, loaned=loaned)
    assert results["shm"] == results["grpc"]
    assert results["loan"] == results["grpc"]
    assert len(set(results["grpc"])) == 6
    assert list(working_folder.iterdir()) == [], "LeRobot's logs/ folder"


def test_sessions_of_the_two_transports_do_not_disturb_each_other(uris: dict[str, str], checkpoint: Path) -> None:
    with open_transport(uris["shm"]) as first, open_transport(uris["grpc"]) as second:
        first.connect(spec(checkpoint))
        expected = answers(first, 2)
        second.connect(spec(checkpoint, actions_per_chunk=3))
        first.send_observation(observe(2))
        chunk = first.receive_actions(60.0)
        assert chunk is not None
        assert chunk.actions.shape == (10, COLUMNS)
        assert len(expected) == 2


def test_refusal_of_the_policy_reaches_the_client(uris: dict[str, str], checkpoint: Path) -> None:
    for policy, words in (
        (spec(checkpoint, policy_type="nonsense"), "nonsense"),
        (spec(checkpoint, action_dim=5), "action"),
        (spec(checkpoint / "absent"), "absent"),
    ):
        with open_transport(uris["shm"]) as transport, pytest.raises(SetupRefusedError, match=words):
            transport.connect(policy)


def test_state_that_is_not_finite_is_an_error_and_the_session_goes_on(uris: dict[str, str], checkpoint: Path) -> None:
    with open_transport(uris["shm"]) as transport:
        transport.connect(spec(checkpoint))
        observation = observe(0)
        observation.state[0] = np.nan
        transport.send_observation(observation)
        with pytest.raises(PolicyError, match="not finite") as info:
            transport.receive_actions(60.0)
        assert info.value.timestep == 0
        assert len(answers(transport, 1)) == 1


def test_nothing_that_a_peer_sent_is_unpickled(folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions honest and hostile against a service in this process, with pickle.loads recording.

    Whatever else unpickles (pickle.load, an Unpickler of torch's) is heard by the interpreter's own audit.
    """
    loaded: list[bytes] = []
    elsewhere: list[tuple[object, ...]] = []
    listening, recorded = [True], [False]
    loads = pickle.loads

    def record(data: bytes, **kwargs: Any) -> Any:
        loaded.append(data)
        recorded[0] = True
        try:
            return loads(data, **kwargs)
        finally:
            recorded[0] = False

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "pickle.find_class" and listening[0] and not recorded[0]:
            elsewhere.append(arguments)

    sys.addaudithook(audit)  # For the life of the process; it listens until the end of this test.
    monkeypatch.setattr(pickle, "loads", record)
    host = PolicyHost()
    service = ShmService(host, "recorded")
    service.start()
    bomb = pickle.dumps(os.getpid)
    try:
        for _ in range(2):
            with open_transport(service.uri) as transport:
                transport.connect(spec(checkpoint))
                observation = observe(0, task=bomb.decode("latin-1"))
                observation.images["image"].reshape(-1)[: len(bomb)] = np.frombuffer(bomb, np.uint8)
                transport.send_observation(observation)
                assert transport.receive_actions(60.0) is not None
        for packet in (bomb, b"\x81\xa4kind" + bomb):
            connection = Connection(rendezvous.connect(rendezvous.socket_path("recorded"), 5.0))
            connection._socket.send(packet)
            with pytest.raises((ProtocolError, PeerGoneError, SetupRefusedError)):
                handshake.check_kind(connection.receive(10.0), "ready")
            connection.close()
        with open_transport(service.uri) as transport, pytest.raises(TransportError):
            transport.connect(spec(checkpoint, policy_type=bomb.decode("latin-1")))
    finally:
        service.stop()
        listening[0] = False
    assert elsewhere == []
    assert len(loaded) == 2
    assert all(type(loads(data)).__name__ == "RemotePolicyConfig" for data in loaded)
    assert loaded[-1] == host.instructions
