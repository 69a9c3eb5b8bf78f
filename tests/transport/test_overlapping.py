"""A policy on a device: while one batch is computed, those who wait meanwhile are prepared for the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from host_parts import ACTIONS, LoggedPolicy, opened, running

from async_delta_inference.errors import PolicyError
from async_delta_inference.transport import ActionChunk, Answer, Request, SessionHost
from async_delta_inference.transport.mailbox import MailboxSession
from async_delta_inference.transport.policy import Launched
from async_delta_inference.transport.testing import CONTRACT_POLICY, WAIT_S, contract_observation, eventually


class Overlapping(LoggedPolicy):
    """Writes down which clients' observations are launched, prepared and collected; a test acts in the middle."""

    overlaps = True

    def __init__(self, **methods: Callable[..., object]) -> None:
        super().__init__(**methods)
        self.log: list[tuple[object, ...]] = []
        self.is_done = False
        self.during_prepare: list[Callable[[], None]] = []
        self.during_launch: list[Callable[[], None]] = []
        self.during_collect: list[Callable[[], None]] = []

    def prepare(self, request: Request) -> None:
        self.log.append(("prepare", *_clients([request])))
        if self.during_prepare:
            self.during_prepare.pop(0)()

    def launch(self, requests: Sequence[Request]) -> Launched:
        clients = _clients(requests)
        self.log.append(("launch", *clients))
        self.is_done = False
        if self.during_launch:
            self.during_launch.pop(0)()
        return _Launched(self, clients)


class _Launched:
    def __init__(self, policy: Overlapping, clients: Sequence[int]) -> None:
        self._policy = policy
        self._clients = clients

    def __call__(self) -> Sequence[Answer]:
        self._policy.log.append(("collect", *self._clients))
        if self._policy.during_collect:
            self._policy.during_collect.pop(0)()
        return [ACTIONS] * len(self._clients)

    def is_done(self) -> bool:
        return self._policy.is_done


def _clients(requests: Sequence[Request]) -> list[int]:
    return [int(request.observation.images["wrist"][0, 0, 0]) for request in requests]


class Crowd:
    """So many sessions of a running host, called by their index."""

    def __init__(self, host: SessionHost, count: int) -> None:
        self.sessions = [opened(host) for _ in range(count)]

    def post(self, *clients: int, timestep: int = 0) -> None:
        for client in clients:
            observation = contract_observation(timestep, client=client)
            for image in observation.images.values():
                image[...] = client
            self.sessions[client].post(observation)

    def reply(self, client: int) -> object:
        return self.sessions[client].next_reply(WAIT_S)


def test_who_waits_while_a_batch_is_computed_is_prepared_for_the_next() -> None:
    policy = Overlapping()
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 4)
        policy.during_launch.append(lambda: crowd.post(1, 2, 3))
        crowd.post(0)
        assert all(isinstance(crowd.reply(client), ActionChunk) for client in range(4))
    assert policy.log == [
        *(("launch", 0), ("prepare", 1), ("prepare", 2), ("collect", 0)),
        *(("launch", 1, 2), ("prepare", 3), ("collect", 1, 2)),
        *(("launch", 3), ("collect", 3)),
    ]
    assert "infer" not in policy.calls


def test_a_batch_is_filled_up_with_who_came_later() -> None:
    policy = Overlapping()
    with running(policy, max_batch=3) as host:
        crowd = Crowd(host, 3)
        policy.during_launch.append(lambda: crowd.post(1))
        policy.during_collect.append(lambda: crowd.post(2))
        crowd.post(0)
        assert all(isinstance(crowd.reply(client), ActionChunk) for client in range(3))
    assert policy.log[:4] == [("launch", 0), ("prepare", 1), ("collect", 0), ("launch", 1, 2)]


def test_a_session_that_is_being_answered_waits_for_the_batch_after() -> None:
    policy = Overlapping()
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 2)
        policy.during_launch.append(lambda: crowd.post(0, timestep=1))
        crowd.post(0)
        replies = [crowd.reply(0), crowd.reply(0)]
    assert [reply.timestep for reply in replies] == [0, 1]  # type: ignore[attr-defined]
    assert ("prepare", 0) not in policy.log


def test_who_leaves_while_it_is_prepared_is_not_asked_for() -> None:
    policy = Overlapping()
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 3)
        policy.during_launch.append(lambda: crowd.post(1, 2))
        policy.during_collect.append(lambda: host.leave(crowd.sessions[1]))
        crowd.post(0)
        assert isinstance(crowd.reply(2), ActionChunk)
        eventually(lambda: policy.calls.count("close") == 1)
    assert ("launch", 2) in policy.log


def test_nobody_waits_for_an_answer_that_is_there_while_others_are_prepared() -> None:
    policy = Overlapping()

    def finish() -> None:
        policy.is_done = True

    with running(policy, max_batch=4) as host:
        crowd = Crowd(host, 4)
        policy.during_launch.append(lambda: crowd.post(1, 2, 3))
        policy.during_prepare.append(finish)
        crowd.post(0)
        assert all(isinstance(crowd.reply(client), ActionChunk) for client in range(4))
    assert policy.log[:4] == [("launch", 0), ("prepare", 1), ("collect", 0), ("launch", 1, 2, 3)]


def test_who_cannot_be_prepared_is_asked_for_all_the_same() -> None:
    policy = Overlapping()
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 2)
        policy.during_launch.append(lambda: crowd.post(1))
        policy.during_prepare.append(_raise)
        crowd.post(0)
        assert all(isinstance(crowd.reply(client), ActionChunk) for client in range(2))


def test_two_halves_that_take_turns_become_one_where_the_host_lingers() -> None:
    policy = Overlapping()
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 2)

        def arrive() -> None:
            host._inbox._linger_s = WAIT_S  # From here on: the first batch is to be of one alone.
            crowd.post(1)

        policy.during_launch.append(arrive)
        crowd.post(0)
        assert isinstance(crowd.reply(0), ActionChunk)
        crowd.post(0, timestep=1)
        assert all(isinstance(crowd.reply(client), ActionChunk) for client in range(2))
    assert [entry for entry in policy.log if entry[0] == "launch"] == [("launch", 0), ("launch", 1, 0)]


def _raise() -> None:
    raise ValueError("out of luck")


@pytest.mark.parametrize("when", ["during_launch", "during_collect"])
def test_what_a_batch_raises_is_its_sessions_answer_and_the_next_one_goes_on(when: str) -> None:
    policy = Overlapping()
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 2)
        getattr(policy, when).append(_raise)
        crowd.post(0)
        failed = crowd.reply(0)
        assert isinstance(failed, PolicyError)
        assert "out of luck" in str(failed)
        crowd.post(1)
        assert isinstance(crowd.reply(1), ActionChunk)


def test_a_policy_that_does_not_overlap_now_is_asked_as_any_other() -> None:
    policy = Overlapping()
    policy.overlaps = False
    with running(policy, max_batch=2) as host:
        crowd = Crowd(host, 2)
        crowd.post(0)
        assert isinstance(crowd.reply(0), ActionChunk)
    assert policy.log == []


class Shown(LoggedPolicy):
    """Its sessions are shown their memory."""

    def open(self, spec: object) -> object:  # type: ignore[override]
        session = super().open(spec)  # type: ignore[arg-type]
        session.share = lambda memory: self.called("share", memory)  # type: ignore[attr-defined]
        return session


class InOnePiece(MailboxSession):
    """As one whose observations lie in shared memory."""

    memory = memoryview(np.zeros(16, np.uint8))

    def shared_memory(self) -> memoryview | None:
        return self.memory


def test_a_policy_that_can_do_nothing_with_its_memory_is_served(caplog: pytest.LogCaptureFixture) -> None:
    def fail(memory: memoryview) -> None:
        raise ValueError("not mine")

    with running(Shown(share=fail)) as host:
        session = InOnePiece(CONTRACT_POLICY, "of one piece", host.ring)
        opened(host, session)
        session.post(contract_observation(0))
        assert isinstance(session.next_reply(WAIT_S), ActionChunk)
    assert "not mine" in caplog.text


def test_a_session_is_shown_its_memory_before_anything_else() -> None:
    shown: list[object] = []
    policy = Shown(share=shown.append)
    with running(policy) as host:
        session = InOnePiece(CONTRACT_POLICY, "of one piece", host.ring)
        opened(host, session)
        session.post(contract_observation(0))
        assert isinstance(session.next_reply(WAIT_S), ActionChunk)
        opened(host)  # Has none to show.
    assert shown == [InOnePiece.memory]
    assert policy.calls[:5] == ["describe", "open", "share", "reset", "infer"]


def test_with_nobody_ahead_the_host_lingers_for_the_next_batch() -> None:
    """Whoever was answered last asks again a little later than the first: without it batches stay small."""
    policy = Overlapping()
    with running(policy, max_batch=2, linger_s=WAIT_S) as host:  # type: ignore[arg-type]
        crowd = Crowd(host, 2)
        policy.during_collect.append(lambda: crowd.post(0, timestep=1))
        crowd.post(0)
        crowd.post(1)
        for client in range(2):
            assert isinstance(crowd.reply(client), ActionChunk)
        crowd.post(1, timestep=1)
        for client in range(2):
            assert isinstance(crowd.reply(client), ActionChunk)
    assert [entry for entry in policy.log if entry[0] == "launch"] == [("launch", 0, 1), ("launch", 0, 1)]
