"""Sessions of one policy: nothing of one reaches another, nothing of an episode reaches the next."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_act import COLUMNS, FEATURES, LARGER, ROWS, ask, begin, forward_of, observe, request, spec

from async_delta_inference.errors import PolicyError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy
from async_delta_inference.transport import Answer, Observation, ObservationFeatures


@pytest.fixture(scope="module", params=["LeRobotPolicy", "PolicyServerPolicy"])
def policy(request: pytest.FixtureRequest) -> Any:
    return LeRobotPolicy() if request.param == "LeRobotPolicy" else PolicyServerPolicy()


@pytest.fixture
def opened(policy: Any, checkpoint: Path) -> Iterator[Callable[..., Any]]:
    """Opens sessions in an episode of theirs, and closes them."""
    sessions = []

    def open_session(features: ObservationFeatures = FEATURES, **changes: Any) -> Any:
        sessions.append(policy.open(spec(checkpoint, features, **changes)))
        begin(sessions[-1])
        return sessions[-1]

    yield open_session
    for session in sessions:
        session.close()
    assert not policy._sessions


def is_chunk(answer: Answer) -> bool:
    return isinstance(answer, np.ndarray) and answer.shape[1:] == (COLUMNS,)


# Beside each other.


SHAPES: tuple[tuple[ObservationFeatures, int], ...] = (
    (FEATURES, 12),
    (LARGER, 5),
    (ObservationFeatures(tuple(f"joint{i}" for i in range(8)), dict(FEATURES.images)), 1),
)


def stream(number: int, features: ObservationFeatures) -> list[Observation]:
    """What one client sends: some are too similar to the last one, and must not go."""
    seeds = [number, number, number + 10, number + 10, number + 20, number]
    sent = []
    for timestep, seed in enumerate(seeds):
        observation = observe(seed, features, must_go=False)
        observation.timestep = timestep
        sent.append(observation)
    return sent


def as_bytes(answer: Answer) -> bytes | str | None:
    return answer.tobytes() if isinstance(answer, np.ndarray) else None if answer is None else str(answer)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("together", [True, False])
def test_sessions_at_once_get_what_each_gets_alone(
    policy: Any, opened: Callable[..., Any], count: int, together: bool
) -> None:
    alone = []
    for number, (features, rows) in enumerate(SHAPES[:count]):
        session = opened(features, actions_per_chunk=rows)
        alone.append([ask(policy, session, observation) for observation in stream(number, features)])
    sessions = [opened(features, actions_per_chunk=rows) for features, rows in SHAPES[:count]]
    found: list[list[Answer]] = [[] for _ in sessions]
    for observations in zip(*(stream(number, SHAPES[number][0]) for number in range(count)), strict=True):
        requests = [request(session, one) for session, one in zip(sessions, observations, strict=True)]
        answers = policy.infer(requests) if together else [policy.infer([one])[0] for one in requests]
        for row, answer in zip(found, answers, strict=True):
            row.append(answer)
    # Those that see images of one size share a forward pass.
    shared = together and count == 3 and isinstance(policy, LeRobotPolicy)
    for row, expected, (_, rows) in zip(found, alone, SHAPES, strict=False):
        for one, other, filtered in zip(row, expected, (False, True, False, True, False, False), strict=True):
            assert (one is None, other is None) == (filtered, filtered)
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
                assert one.shape == other.shape == (rows, COLUMNS)
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 if shared else 0)


def test_a_session_that_begins_or_ends_does_not_touch_the_filter_of_another(
    policy: Any, opened: Callable[..., Any], checkpoint: Path
) -> None:
    first = opened()
    assert is_chunk(ask(policy, first, observe(0)))
    second = policy.open(spec(checkpoint, LARGER))
    begin(second)
    assert is_chunk(ask(policy, second, observe(0, LARGER, must_go=False)))
    assert is_chunk(ask(policy, second, observe(7, LARGER, must_go=False)))
    second.close()
    similar = observe(0, must_go=False)
    similar.timestep = 1
    assert ask(policy, first, similar) is None


def test_a_request_that_fails_disturbs_no_other_of_its_call(
    policy: Any, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [opened() for _ in range(4)]
    expected = [as_bytes(ask(policy, session, observe(seed))) for seed, session in enumerate(sessions, 1)]
    again = [observe(seed) for seed in range(1, 5)]
    again[1].state[3] = np.inf
    act, calls = getattr(*forward_of(policy)), []

    def fail_second(batch: Any) -> Any:
        if len(batch["observation.state"]) > 1:
            raise RuntimeError("not all at once")
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit("the policy left")
        return act(batch)

    monkeypatch.setattr(*forward_of(policy), fail_second)
    requests = [request(session, one) for session, one in zip(sessions, again, strict=True)]
    answers = policy.infer(requests)
    assert as_bytes(answers[0]) == expected[0]
    assert isinstance(answers[1], PolicyError)
    assert "state of timestep 2 is not finite" in str(answers[1])
    assert isinstance(answers[2], PolicyError)
    assert str(answers[2]) == "SystemExit: the policy left"
    assert as_bytes(answers[3]) == expected[3]
    assert as_bytes(ask(policy, sessions[2], observe(3))) == expected[2]


def test_sessions_share_a_forward_pass(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LeRobotPolicy()
    rows = (12, 5, 9)
    sessions = [policy.open(spec(checkpoint, actions_per_chunk=n)) for n in rows]
    for session in sessions:
        begin(session)
    alone = [ask(policy, session, observe(i)) for i, session in enumerate(sessions)]
    act, asked = getattr(*forward_of(policy)), []
    monkeypatch.setattr(*forward_of(policy), lambda batch: (asked.append(len(batch["task"])), act(batch))[1])
    answers = policy.infer([request(session, observe(i)) for i, session in enumerate(sessions)])
    assert asked == [3]
    for answer, expected, n in zip(answers, alone, rows, strict=True):
        assert isinstance(answer, np.ndarray)
        assert answer.shape == (n, COLUMNS)
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    for session in sessions:
        session.close()


# One after the other.


def test_similar_observation_is_filtered_and_must_go_is_not(policy: Any, opened: Callable[..., Any]) -> None:
    session = opened()
    assert is_chunk(ask(policy, session, observe(0)))
    similar = observe(0, must_go=False)
    similar.timestep = 1
    assert ask(policy, session, similar) is None
    similar.must_go = True
    assert is_chunk(ask(policy, session, similar))
    assert is_chunk(ask(policy, session, observe(77, must_go=False)))


def test_nothing_of_an_episode_reaches_into_the_next(
    policy: Any, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    assert is_chunk(ask(policy, session, observe(1)))
    assert ask(policy, session, observe(1, must_go=False)) is None
    resets: list[str] = []
    owner = policy.driven.server if isinstance(policy, PolicyServerPolicy) else policy.loaded
    for name in ("policy", "preprocessor", "postprocessor"):
        monkeypatch.setattr(getattr(owner, name), "reset", lambda name=name: resets.append(name))
    begin(session, episode=1)
    assert resets == ["policy", "preprocessor", "postprocessor"]
    assert is_chunk(ask(policy, session, observe(1, must_go=False)))  # seen and answered before, in the last episode
    assert len(resets) == 3


def test_new_session_begins_anew(policy: Any, opened: Callable[..., Any]) -> None:
    assert is_chunk(ask(policy, opened(), observe(5)))
    assert is_chunk(ask(policy, opened(), observe(5, must_go=False)))


def test_chunk_has_no_more_rows_than_the_session_wants(policy: Any, opened: Callable[..., Any]) -> None:
    for rows, expected in ((5, 5), (ROWS, ROWS), (1000, 16)):
        answer = ask(policy, opened(actions_per_chunk=rows), observe(1))
        assert isinstance(answer, np.ndarray)
        assert answer.shape == (expected, COLUMNS)


def test_images_are_not_kept(policy: Any, opened: Callable[..., Any]) -> None:
    """A slot must be free once it was given back, whatever the filter remembers."""
    session = opened()
    observation = observe(3)
    kept = [weakref.ref(image) for image in observation.images.values()]
    assert is_chunk(ask(policy, session, observation))
    del observation
    gc.collect()
    assert [image() for image in kept] == [None, None]


def test_memory_of_predicted_timesteps_is_bounded(policy_server_policy: PolicyServerPolicy, checkpoint: Path) -> None:
    session = policy_server_policy.open(spec(checkpoint))
    for timestep in range(20):
        ask(policy_server_policy, session, observe(timestep))
    assert len(pickle.dumps(policy_server_policy.driven.server._predicted_timesteps)) < 100
    session.close()


# What a request is given back, and errors.


@pytest.fixture(scope="module")
def stepwise() -> LeRobotPolicy:
    return LeRobotPolicy()


def test_slot_is_given_back_before_the_forward_pass(
    stepwise: LeRobotPolicy, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = stepwise.open(spec(checkpoint))
    order: list[str] = []
    act = getattr(*forward_of(stepwise))
    monkeypatch.setattr(*forward_of(stepwise), lambda batch: (order.append("forward"), act(batch))[1])
    observation = observe(4)
    expected = ask(stepwise, session, observe(4))

    def release() -> None:
        order.append("release")
        for array in (observation.state, *observation.images.values()):
            array.setflags(write=True)
            array[...] = 0

    (answer,) = stepwise.infer([request(session, observation, release)])
    assert order == ["forward", "release", "forward"]
    assert as_bytes(answer) == as_bytes(expected)
    similar = observe(4, must_go=False)
    similar.timestep = 5
    assert ask(stepwise, session, similar) is None  # the filter remembers the state as it was
    session.close()


def test_error_of_the_policy_is_an_answer_and_the_next_is_answered(
    policy: Any, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()

    def fail(batch: object) -> None:
        raise RuntimeError("the policy broke")

    monkeypatch.setattr(*forward_of(policy), fail)
    answer = ask(policy, session, observe(1))
    assert isinstance(answer, PolicyError)
    assert str(answer) == "RuntimeError: the policy broke"
    monkeypatch.undo()
    assert is_chunk(ask(policy, session, observe(2)))
