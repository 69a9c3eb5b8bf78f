"""`LeRobotPolicy` behind a host, with the checks that every policy's answers go through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_act import COLUMNS, FEATURES, LARGER, ROWS, forward_of, observe, spec

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import Observation, Transport, connect, serve

_numbers = itertools.count()


@pytest.fixture(params=["inproc", "shm"])
def uri(request: pytest.FixtureRequest, policy: LeRobotPolicy, runtime_folder: Path) -> Iterator[str]:
    with serve(policy, f"{request.param}://served-{next(_numbers)}") as server:
        yield server.uris[0]
    assert not policy._sessions


def ask(transport: Transport, observation: Observation) -> np.ndarray:
    transport.send_observation(observation)
    chunk = transport.receive_actions(60.0)
    assert chunk is not None
    assert chunk.timestep == observation.timestep
    return chunk.actions


def test_actions_that_are_not_finite_are_an_error_and_the_session_goes_on(
    uri: str, policy: LeRobotPolicy, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(uri, spec(checkpoint)) as transport:
        expected = ask(transport, observe(1))
        act = getattr(*forward_of(policy))
        monkeypatch.setattr(*forward_of(policy), lambda batch: act(batch) * float("nan"))
        with pytest.raises(PolicyError, match="the policy gave actions that are not finite") as info:
            ask(transport, observe(2))
        assert info.value.timestep == 2
        monkeypatch.undo()
        again = observe(1)
        again.timestep = 3
        assert np.array_equal(ask(transport, again), expected)


def test_episodes_begin_for_each_session_by_itself(
    uri: str, policy: LeRobotPolicy, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(uri, spec(checkpoint)) as first, connect(uri, spec(checkpoint, LARGER)) as second:
        resets: list[int] = []
        assert policy.loaded is not None
        monkeypatch.setattr(policy.loaded.policy, "reset", lambda: resets.append(1))
        counts = []
        for transport, features, timestep, episode in (
            (first, FEATURES, 0, 0),
            (second, LARGER, 0, 0),
            (first, FEATURES, 1, 0),
            (second, LARGER, 1, 1),
            (first, FEATURES, 2, 0),
            (first, FEATURES, 3, 2),
        ):
            assert ask(transport, observe(timestep, features, episode=episode)).shape == (ROWS, COLUMNS)
            counts.append(len(resets))
        assert counts == [1, 2, 2, 3, 3, 4]


def test_length_of_actions_is_refused_before_anything_is_loaded(
    uri: str, policy: LeRobotPolicy, checkpoint: Path
) -> None:
    loaded = policy.loaded
    with pytest.raises(SetupRefusedError, match="action has 5 elements"):
        connect(uri, spec(checkpoint, action_dim=5))
    assert policy.loaded is loaded
