"""async-delta-serve on both transports in a process of its own: the same checkpoint gives the same bits over either."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_process import serve_process
from small_act import COLUMNS, FEATURES, LARGER, observe, spec

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.transport import ActionChunk, Observation, Transport, connect

ROWS = 10
BOTH = pytest.mark.parametrize("scheme", ["grpc", "shm"])


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cwd")


@pytest.fixture(scope="module")
def uris(runtime_folder: Path, working_folder: Path) -> Iterator[dict[str, str]]:
    """One process that serves on both transports."""
    flags = ["--transport=grpc,shm", "--server_address=127.0.0.1:0,shm://both"]
    with serve_process(flags, cwd=working_folder) as found:
        yield {uri.partition("://")[0]: uri for uri in found}
    assert list(runtime_folder.glob("*.sock")) == []


def wanted(checkpoint: Path, **changes: Any) -> Any:
    return spec(checkpoint, **{"actions_per_chunk": ROWS, **changes})


def answer_to(transport: Transport, observation: Observation, *, loaned: bool = False) -> ActionChunk:
    if loaned:
        own, observation = observation, transport.loan_observation()
        observation.state[...] = own.state
        for name, image in own.images.items():
            observation.images[name][...] = image
        observation.timestep, observation.task, observation.episode = own.timestep, own.task, own.episode
    transport.send_observation(observation)
    chunk = transport.receive_actions(60.0)
    assert chunk is not None
    assert chunk.timestep == observation.timestep
    return chunk


def answers(transport: Transport, count: int, *, loaned: bool = False) -> list[bytes]:
    found = []
    for timestep in range(count):
        chunk = answer_to(transport, observe(timestep, episode=timestep // 2), loaned=loaned)
        assert chunk.actions.shape == (ROWS, COLUMNS)
        found.append(chunk.actions.tobytes())
    return found


def test_both_transports_give_the_same_bits(uris: dict[str, str], checkpoint: Path, working_folder: Path) -> None:
    results = {}
    for key, uri, loaned in (("grpc", uris["grpc"], False), ("shm", uris["shm"], False), ("loan", uris["shm"], True)):
        with connect(uri, wanted(checkpoint)) as transport:
            results[key] = answers(transport, 6, loaned=loaned)
    assert results["shm"] == results["grpc"]
    assert results["loan"] == results["grpc"]
    assert len(set(results["grpc"])) == 6
    assert list(working_folder.iterdir()) == [], "LeRobot's logs/ folder"


def test_sessions_of_both_transports_at_once_get_what_each_gets_alone(uris: dict[str, str], checkpoint: Path) -> None:
    sessions = [
        (uris["shm"], FEATURES, 10),
        (uris["grpc"], FEATURES, 3),
        (uris["shm"], LARGER, 7),
        (uris["grpc"], LARGER, 12),
    ]
    alone: list[list[bytes]] = []
    for number, (uri, features, rows) in enumerate(sessions):
        with connect(uri, wanted(checkpoint, features=features, actions_per_chunk=rows)) as transport:
            sent = [observe(10 * number + i, features) for i in range(4)]
            alone.append([answer_to(transport, observation).actions.tobytes() for observation in sent])
    with ExitStack() as stack:
        transports = [
            stack.enter_context(connect(uri, wanted(checkpoint, features=features, actions_per_chunk=rows)))
            for uri, features, rows in sessions
        ]
        found: list[list[bytes]] = [[] for _ in sessions]
        for i in range(4):
            for number, transport in enumerate(transports):
                transport.send_observation(observe(10 * number + i, sessions[number][1]))
            for number, transport in enumerate(transports):
                chunk = transport.receive_actions(60.0)
                assert chunk is not None
                assert chunk.timestep == 10 * number + i
                assert len(chunk) == sessions[number][2]
                found[number].append(chunk.actions.tobytes())
    assert found == alone


@BOTH
def test_refusal_of_the_policy_reaches_the_client(uris: dict[str, str], scheme: str, checkpoint: Path) -> None:
    for policy, words in (
        (wanted(checkpoint, policy_type="nonsense"), "nonsense"),
        (wanted(checkpoint, features=LARGER, policy_type="smolvla"), "of type act, not smolvla"),
        (wanted(checkpoint / "absent"), "absent"),
    ):
        with pytest.raises(SetupRefusedError, match=words):
            connect(uris[scheme], policy)


@BOTH
def test_another_policy_is_served_when_the_sessions_with_the_first_have_ended(
    uris: dict[str, str], scheme: str, checkpoint: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    with connect(uris["shm"], wanted(checkpoint)) as first, connect(uris["grpc"], wanted(checkpoint)) as second:
        with pytest.raises(SetupRefusedError) as info:
            connect(uris[scheme], wanted(other))
        assert f"serves act from {checkpoint} on cpu to 2 sessions; act from {other}" in str(info.value)
        assert answers(first, 1) == answers(second, 1)
    with connect(uris[scheme], wanted(other)) as transport:
        assert len(answers(transport, 1)) == 1


def test_description_of_the_policy_reaches_the_client(uris: dict[str, str], checkpoint: Path) -> None:
    with connect(uris["shm"], wanted(checkpoint)) as transport:
        assert transport.description == f"act from {checkpoint}"
    with pytest.raises(SetupRefusedError, match="action has 5 elements"):
        connect(uris["shm"], wanted(checkpoint, action_dim=5))


def test_state_that_is_not_finite_is_an_error_and_the_session_goes_on(uris: dict[str, str], checkpoint: Path) -> None:
    with connect(uris["shm"], wanted(checkpoint)) as transport:
        observation = observe(0)
        observation.state[0] = np.nan
        transport.send_observation(observation)
        with pytest.raises(PolicyError, match="state of timestep 0 is not finite") as info:
            transport.receive_actions(60.0)
        assert info.value.timestep == 0
        assert len(answers(transport, 1)) == 1
