"""What a policy may answer, and do wrong: its client hears of it, and nobody else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from host_parts import ACTIONS, LoggedPolicy, ask, enter, opened, running
from numpy.typing import NDArray

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.transport import (
    ActionChunk,
    EpisodeStart,
    FunctionPolicy,
    Observation,
    Request,
    SessionSpec,
)
from async_delta_inference.transport.mailbox import Filtered
from async_delta_inference.transport.testing import (
    WAIT_S,
    contract_observation,
    eventually,
)


def test_policy_is_asked_from_one_thread_alone() -> None:
    policy = LoggedPolicy()
    with running(policy) as host:
        sessions = [opened(host) for _ in range(3)]
        for session in sessions:
            ask(session, 0)
        host.leave(sessions[0])
        eventually(lambda: "close" in policy.calls)
    assert policy.calls.count("close") == 3
    assert len(policy.threads) == 1
    assert threading.get_ident() not in policy.threads


def test_description_that_fails_refuses_the_session() -> None:
    def fail(spec: SessionSpec) -> None:
        raise KeyError("no such thing")

    with (
        running(LoggedPolicy(describe=fail)) as host,
        pytest.raises(SetupRefusedError, match=r"KeyError.*no such thing"),
    ):
        enter(host)


@pytest.mark.parametrize("error", [SetupRefusedError("not you"), ValueError("no weights"), SystemExit("gave up")])
def test_policy_that_cannot_be_opened_refuses_one_session(error: BaseException) -> None:
    errors = [error]

    def fail_once(spec: SessionSpec) -> None:
        if errors:
            raise errors.pop()

    with running(LoggedPolicy(open=fail_once), max_sessions=1) as host:
        refused = enter(host)
        with pytest.raises(SetupRefusedError, match=str(error)):
            refused.wait_until_open(WAIT_S)
        assert isinstance(ask(opened(host), 0), ActionChunk)  # its seat was given back


def test_reset_comes_before_the_first_observation_of_each_episode() -> None:
    starts: list[EpisodeStart] = []
    policy = LoggedPolicy(reset=starts.append)
    with running(policy) as host:
        session = opened(host)
        for timestep, episode in enumerate([4, 4, 5, 4]):
            ask(session, timestep, episode=episode)
    assert policy.calls == ["describe", "open", "reset", "infer", "infer", *2 * ["reset", "infer"], "close"]
    assert starts == [EpisodeStart(4, "task 0"), EpisodeStart(5, "task 2"), EpisodeStart(4, "task 3")]


def test_reset_that_fails_is_an_error_and_tried_again() -> None:
    errors: list[Exception] = [RuntimeError("not now")]

    def fail_once(episode: EpisodeStart) -> None:
        if errors:
            raise errors.pop()

    policy = LoggedPolicy(reset=fail_once)
    with running(policy) as host:
        session = opened(host)
        reply = ask(session, 0)
        assert isinstance(reply, PolicyError)
        assert (str(reply), reply.timestep) == ("RuntimeError: not now", 0)
        assert isinstance(ask(session, 1), ActionChunk)
    assert policy.calls.count("reset") == 2
    assert policy.calls.count("infer") == 1


def test_reset_that_fails_in_a_batch_spoils_no_other() -> None:
    begun, go_on = threading.Event(), threading.Event()
    batches: list[int] = []

    def fail(episode: EpisodeStart) -> None:
        if episode.episode == 9:
            raise RuntimeError("not this one")

    def infer(requests: Sequence[Request]) -> None:
        batches.append(len(requests))
        begun.set()
        go_on.wait(WAIT_S)

    with running(LoggedPolicy(reset=fail, infer=infer), max_batch=4) as host:
        busy, second, third = opened(host), opened(host), opened(host)
        busy.post(contract_observation(0))
        assert begun.wait(WAIT_S)
        second.post(contract_observation(1, episode=9))
        third.post(contract_observation(2))
        go_on.set()
        assert isinstance(second.next_reply(WAIT_S), PolicyError)
        reply = third.next_reply(WAIT_S)
        assert isinstance(reply, ActionChunk)
        assert reply.timestep == 2
    assert batches == [1, 1]


def test_close_that_fails_frees_the_seat_all_the_same() -> None:
    def fail() -> None:
        raise RuntimeError("cannot close")

    policy = LoggedPolicy(close=fail)
    with running(policy, max_sessions=1) as host:
        host.leave(opened(host))
        assert isinstance(ask(opened(host), 0), ActionChunk)


@pytest.mark.parametrize("error", [ValueError("broke"), PolicyError("broke"), SystemExit("broke")])
def test_inference_that_raises_is_the_clients_error(error: BaseException) -> None:
    errors = [error]

    def fail_once(requests: Sequence[Request]) -> None:
        if errors:
            raise errors.pop()

    with running(LoggedPolicy(infer=fail_once)) as host:
        session = opened(host)
        reply = ask(session, 7)
        assert isinstance(reply, PolicyError)
        assert (str(reply).endswith("broke"), reply.timestep) == (True, 7)
        assert isinstance(ask(session, 8), ActionChunk)


def author_reads(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that a server without any logging of its own prints."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_policys_author_reads_each_new_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    errors = iter([ZeroDivisionError("first"), ZeroDivisionError("first"), KeyError("second"), PolicyError("meant")])

    def look_into_the_frame(requests: Sequence[Request]) -> None:
        raise next(errors)

    with running(LoggedPolicy(infer=look_into_the_frame)) as host:
        session = opened(host)
        for timestep in range(4):
            assert isinstance(ask(session, timestep), PolicyError)
    first, second = author_reads(caplog)
    assert "look_into_the_frame" in first
    assert first.endswith("ZeroDivisionError: first")
    assert second.endswith("KeyError: 'second'")


def test_functions_author_reads_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def divide(observation: Observation) -> float:
        return 1 / 0

    with running(FunctionPolicy(divide)) as host:
        reply = ask(opened(host), 0)
    assert str(reply) == "ZeroDivisionError: division by zero"
    (line,) = author_reads(caplog)
    assert "return 1 / 0" in line


@pytest.mark.parametrize("answers", [[], [ACTIONS, ACTIONS]])
def test_answers_too_few_or_too_many_are_an_error(answers: list[NDArray[np.float32]]) -> None:
    with running(LoggedPolicy(infer=lambda requests: answers)) as host:
        reply = ask(opened(host), 0)
        assert isinstance(reply, PolicyError)
        assert f"{len(answers)} answers to 1 requests" in str(reply)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param([[1.0, 2.0, 3.0]], r"gave a list; agreed were float32 \(n, 3\)", id="list"),
        pytest.param(ACTIONS.astype(np.float64), r"float64 \(2, 3\)", id="float64"),
        pytest.param(ACTIONS[0], r"float32 \(3,\)", id="one row"),
        pytest.param(ACTIONS[None], r"float32 \(1, 2, 3\)", id="three dimensions"),
        pytest.param(ACTIONS[:, :2], r"float32 \(2, 2\)", id="narrow"),
        pytest.param(ACTIONS[:0], "0 actions, agreed were 1 to 5", id="empty"),
        pytest.param(np.zeros((6, 3), np.float32), "6 actions, agreed were 1 to 5", id="long"),
        pytest.param(np.full((1, 3), np.nan, np.float32), "not finite", id="nan"),
        pytest.param(np.full((5, 3), -np.inf, np.float32), "not finite", id="infinite"),
        pytest.param(PolicyError(""), "^$", id="error without words"),
    ],
)
def test_answer_that_was_not_agreed_is_an_error(answer: object, said: str) -> None:
    with running(LoggedPolicy(infer=lambda requests: [answer])) as host:
        reply = ask(opened(host), 3)
        assert isinstance(reply, PolicyError)
        assert reply.timestep == 3
        with pytest.raises(PolicyError, match=said):
            raise reply


@pytest.mark.parametrize(
    "answer",
    [ACTIONS, ACTIONS[:1], np.zeros((5, 3), np.float32), np.asfortranarray(ACTIONS), np.repeat(ACTIONS, 2, 1)[:, ::2]],
)
def test_any_array_of_the_agreed_form_is_an_answer(answer: NDArray[np.float32]) -> None:
    with running(LoggedPolicy(infer=lambda requests: [answer])) as host:
        reply = ask(opened(host), 3)
        assert isinstance(reply, ActionChunk)
        np.testing.assert_array_equal(reply.actions, answer)


def test_answer_is_the_clients_own_copy() -> None:
    actions = ACTIONS.copy()
    with running(LoggedPolicy(infer=lambda requests: [actions])) as host:
        reply = ask(opened(host), 0)
        assert isinstance(reply, ActionChunk)
        actions[:] = -1
        np.testing.assert_array_equal(reply.actions, ACTIONS)


def test_policy_may_choose_not_to_answer() -> None:
    with running(LoggedPolicy(infer=lambda requests: [None])) as host:
        assert ask(opened(host), 4) == Filtered(4)
