"""Turns, batches and lingering, with the sessions that inproc and gRPC have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport import Inbox, Observation, ServedSession
from async_delta_inference.transport.inbox import Bell, Seat, ThreadBell
from async_delta_inference.transport.mailbox import MAX_REPLIES, MailboxSession
from async_delta_inference.transport.testing import CONTRACT_POLICY, contract_observation


class NoSession:
    """The policy's half of a session, which the inbox hands on and never calls."""

    def reset(self, episode: object) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


class ScriptedBell:
    """Something happens at every wait, as far as the script goes: time passes as the test says."""

    def __init__(self, *script: Callable[[], None]) -> None:
        self._script = list(script)
        self.waits_s: list[float] = []

    def ring(self) -> None:
        pass

    def wait(self, timeout_s: float) -> None:
        self.waits_s.append(timeout_s)
        if self._script:
            self._script.pop(0)()


class Boxes:
    """An inbox with so many sessions, which the tests call by their index."""

    def __init__(self, count: int, max_batch: int = 1, linger_s: float = 0.0, bell: Bell | None = None) -> None:
        self.inbox = Inbox(bell or ThreadBell(), max_batch, linger_s)
        self.sessions = [MailboxSession(CONTRACT_POLICY, f"session {i}", lambda: None) for i in range(count)]
        self.seats = [Seat(session, NoSession()) for session in self.sessions]
        for seat in self.seats:
            self.inbox.add(seat)

    def post(self, *indices: int, timestep: int = 0) -> None:
        for index in indices:
            self.sessions[index].post(contract_observation(timestep, client=index))

    def take(self) -> list[int]:
        """Who is handed out; each is answered."""
        taken = list(self.inbox.take())
        for seat in taken:
            seat.served.answer(seat.observation, np.zeros((1, 3), np.float32).tobytes())
        return [self.seats.index(seat) for seat in taken]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nobody_waits(count: int) -> None:
    assert Boxes(count).take() == []


def test_the_newest_observation_is_handed_out() -> None:
    boxes = Boxes(2)
    for timestep in (1, 2, 3):
        boxes.post(1, timestep=timestep)
    (seat,) = boxes.inbox.take()
    assert seat is boxes.seats[1]
    assert seat.observation.timestep == 3
    assert boxes.take() == []


def test_whoever_was_served_comes_last() -> None:
    boxes = Boxes(3)
    order = []
    for _ in range(7):
        boxes.post(0, 1, 2)
        order += boxes.take()
    assert order == [0, 1, 2, 0, 1, 2, 0]


def test_whoever_has_nothing_keeps_its_turn() -> None:
    boxes = Boxes(3)
    boxes.post(1, 2)
    assert boxes.take() == [1]
    boxes.post(0, 1)
    assert boxes.take() == [0]
    assert boxes.take() == [2]
    assert boxes.take() == [1]


def test_batch_is_of_different_sessions_and_no_longer_than_allowed() -> None:
    boxes = Boxes(5, max_batch=3)
    boxes.post(0, 1, 2, 3, 4)
    assert boxes.take() == [0, 1, 2]
    boxes.post(0, 1, 2)
    assert boxes.take() == [3, 4, 0]
    assert boxes.take() == [1, 2]


def test_who_came_last_has_the_last_turn_and_who_is_removed_has_none() -> None:
    boxes = Boxes(3)
    boxes.inbox.remove(boxes.seats[0])
    boxes.inbox.add(boxes.seats[0])
    boxes.inbox.remove(boxes.seats[2])
    boxes.post(0, 1, 2)
    assert boxes.take() == [1]
    assert boxes.take() == [0]
    assert boxes.take() == []
    assert len(boxes.inbox) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_session_that_raises_is_set_apart_and_no_other(count: int) -> None:
    class Broken(MailboxSession):
        def take(self) -> Observation | None:
            raise ProtocolError("nonsense")

    boxes = Boxes(count, max_batch=4)
    broken = Seat(Broken(CONTRACT_POLICY, "broken", lambda: None), NoSession())
    boxes.inbox.remove(boxes.seats[0])
    boxes.inbox.add(broken)
    boxes.post(*range(1, count))
    assert boxes.take() == list(range(1, count))
    ((seat, reason),) = boxes.inbox.failed
    assert seat is broken
    assert str(reason) == "nonsense"


def test_session_whose_client_takes_no_answers_waits_until_it_does() -> None:
    boxes = Boxes(2)
    for timestep in range(MAX_REPLIES):
        boxes.post(0, timestep=timestep)
        assert boxes.take() == [0]
    boxes.post(0, 1, timestep=MAX_REPLIES)
    assert boxes.take() == [1]
    assert boxes.take() == []
    assert boxes.sessions[0].next_reply(0.0) is not None
    assert boxes.take() == [0]


# Lingering.


def test_lingers_until_the_batch_is_full() -> None:
    bell = ScriptedBell(lambda: boxes.post(2), lambda: None, lambda: boxes.post(0))
    boxes = Boxes(4, max_batch=3, linger_s=60.0, bell=bell)
    boxes.post(1)
    assert boxes.take() == [0, 1, 2]
    assert len(bell.waits_s) == 3
    first, second, third = bell.waits_s
    assert 60.0 >= first > second > third  # one deadline, not a new one each time


def test_lingers_for_no_more_sessions_than_there_are() -> None:
    bell = ScriptedBell(lambda: boxes.post(0))
    boxes = Boxes(2, max_batch=8, linger_s=60.0, bell=bell)
    boxes.post(1)
    assert boxes.take() == [0, 1]
    assert len(bell.waits_s) == 1


def test_lingers_no_longer_than_agreed() -> None:
    bell = ScriptedBell()
    boxes = Boxes(2, max_batch=2, linger_s=0.01, bell=bell)
    boxes.post(1)
    assert boxes.take() == [1]
    assert max(bell.waits_s) <= 0.01


@pytest.mark.parametrize(
    ("count", "max_batch", "linger_s", "posts"),
    [
        pytest.param(3, 2, 60.0, [], id="nobody waits"),
        pytest.param(1, 2, 60.0, [0], id="alone"),
        pytest.param(3, 1, 60.0, [0], id="no batches"),
        pytest.param(3, 2, 0.0, [0], id="no lingering"),
        pytest.param(3, 2, 60.0, [0, 2], id="full at once"),
    ],
)
def test_does_not_linger_in_vain(count: int, max_batch: int, linger_s: float, posts: list[int]) -> None:
    bell = ScriptedBell()
    boxes = Boxes(count, max_batch, linger_s, bell)
    boxes.post(*posts)
    assert boxes.take() == posts
    assert bell.waits_s == []


# The bell.


def test_ring_is_kept_for_who_waits_later_and_rings_do_not_pile_up() -> None:
    bell = ThreadBell()
    for _ in range(5):
        bell.ring()
    bell.wait(60.0)
    bell.wait(0.001)  # in vain: it returns all the same


def test_session_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ServedSession(CONTRACT_POLICY, "nobody")  # type: ignore[abstract]
