"""`Inbox`: where the sessions of all listeners meet, and the turn in which they are served.

A session has one place in it, whatever it sends: the newest observation. Whoever was served last comes last, so that
nobody is served twice while another one waits. The inbox waits for all sessions at once at one bell, which whoever has
put an observation in place rings afterwards; nothing is polled.
"""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import PolicyNeeds, PolicySession, Request

__all__ = ["LONGEST_WAIT_S", "Bell", "Inbox", "Seat", "ServedSession", "ThreadBell"]

LONGEST_WAIT_S = 1.0
"""Bound of one wait at the bell, which a peer may have broken: all sessions are looked at afterwards in any case."""


class Bell(Protocol):
    """Wakes the inference loop."""

    def ring(self) -> None:
        """Wake it, from any thread; a ring while nobody waits is kept."""

    def wait(self, timeout_s: float) -> None:
        """Return when it was rung, or after ``timeout_s``."""


class ThreadBell:
    """A bell within one process."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """See `Bell`."""
        if self._rings.empty():  # One that is kept is enough: its reader looks at all sessions.
            self._rings.put(None)

    def wait(self, timeout_s: float) -> None:
        """See `Bell`."""
        try:
            self._rings.get(timeout=timeout_s)
        except queue.Empty:
            return


class ServedSession(ABC):
    """One client's session as the server sees it. A listener makes it; a backend implements it.

    The inference loop calls its methods, never two at once; but `end`, `has_left` and `peek_timestep` may be called
    from any thread at any time. What one of them raises ends this session and no other.

    Args:
        spec: What the client asked for.
        label: Names the client in messages to humans.
    """

    def __init__(self, spec: SessionSpec, label: str) -> None:
        self.spec = spec
        self.label = label

    @abstractmethod
    def opened(self, needs: PolicyNeeds) -> None:
        """The policy is loaded: tell the client that its session begins."""

    @abstractmethod
    def refused(self, reason: str) -> None:
        """Tell the client that there will be no session; nothing follows but `close`."""

    @abstractmethod
    def waiting(self) -> bool:
        """Whether `take` would give an observation."""

    @abstractmethod
    def take(self) -> Observation | None:
        """The newest observation that was not taken yet, or None.

        None, too, while there is no room for an answer. What is taken belongs to the loop until `release`; its arrays
        are read-only. An observation that replaced one that must be answered must be answered, too.

        Raises:
            ProtocolError: The client sent what it may not.
        """

    @abstractmethod
    def release(self) -> None:
        """The taken observation's memory is not needed any more. A second call does nothing."""

    @abstractmethod
    def answer(self, observation: Observation, data: bytes) -> None:
        """Release the observation, if it was not, and send a chunk.

        Args:
            observation: The one that was taken.
            data: Rows of ``spec.action_dim`` float32 each, checked.
        """

    @abstractmethod
    def fail(self, observation: Observation, reason: str) -> None:
        """Release the observation, if it was not, and send a policy's error in place of a chunk."""

    @abstractmethod
    def pass_over(self, observation: Observation) -> None:
        """Release the observation, if it was not: the policy chose not to answer it."""

    @abstractmethod
    def end(self, reason: str) -> None:
        """Tell the client why the session is over. Idempotent; does not wait."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. Called once, after everything else."""

    def shared_memory(self) -> memoryview | None:
        """The one piece of memory that all observations lie in; None where there is none. It stays until `close`."""
        return None

    can_be_alone: ClassVar[bool] = False
    """Whether the loop can wait for this session without the bell, as long as there is no other."""

    def be_alone(self, alone: bool) -> None:
        """Whether the loop waits for this session alone, with `take_within`, from now on; else it waits at the bell."""
        raise NotImplementedError(f"{type(self).__name__} cannot be waited for alone")

    def take_within(self, timeout_s: float) -> Observation | None:
        """As `take`, but wait for an observation: until it comes, somebody interrupts, or ``timeout_s`` have passed."""
        raise NotImplementedError(f"{type(self).__name__} cannot be waited for alone")

    def interrupt(self) -> None:
        """Have `take_within` return, from any thread, once the session is over."""
        raise NotImplementedError(f"{type(self).__name__} cannot be waited for alone")

    def has_left(self) -> bool:
        """Whether the client is known to be gone, though nobody has said so yet; from any thread, does not wait."""
        return False

    def peek_timestep(self) -> int | None:
        """Timestep of the observation that waits, or None; from any thread, for diagnosis."""
        return None


class Seat(Request):
    """A session that is served. It is the request that the policy is given, too, for the session's whole life.

    Args:
        served: The backend's half of the session.
        session: The policy's half.
    """

    __slots__ = ("episode", "served", "whole_chunk")

    def __init__(self, served: ServedSession, session: PolicySession) -> None:
        super().__init__(session, Observation({}, np.empty(0, np.float32)), served.release)
        self.served = served
        self.episode: int | None = None
        """The episode of the observation that was answered last; None before the first."""
        self.whole_chunk = (served.spec.actions_per_chunk, served.spec.action_dim)


class Inbox:
    """The seats in the order of their turns. All methods but `ring` are the inference loop's.

    Args:
        bell: Rung for every observation.
        max_batch: Requests that are handed out together, at most.
        linger_s: How long to wait for more of them once there is one.
    """

    def __init__(self, bell: Bell, max_batch: int, linger_s: float) -> None:
        self.bell = bell
        self._max_batch = max_batch
        self._linger_s = linger_s
        self._seats: list[Seat] = []
        self.alone: Seat | None = None
        """The only seat, where its session can be waited for by itself; None where the bell is to be waited at."""
        self.failed: list[tuple[Seat, Exception]] = []
        """Seats whose sessions are to be ended, and why; whoever ends them takes them out."""

    def __len__(self) -> int:
        return len(self._seats)

    def seats(self) -> list[Seat]:
        """All of them, in the order of their turns."""
        return list(self._seats)

    def add(self, seat: Seat) -> None:
        """Give it the last turn."""
        self._seats.append(seat)
        self._choose_how_to_wait()

    def remove(self, seat: Seat) -> None:
        """It has no turn any more."""
        self._seats.remove(seat)
        self._choose_how_to_wait()

    def interrupt(self, session: ServedSession) -> None:
        """Have whoever waits for this session alone stop waiting, since it is over; from any thread."""
        seat = self.alone
        if seat is not None and seat.served is session:
            session.interrupt()

    def _choose_how_to_wait(self) -> None:
        """For one session by itself where it can be; for several, whose clients are asked to ring, at the bell."""
        seats = self._seats
        self.alone = seats[0] if len(seats) == 1 and seats[0].served.can_be_alone else None
        for seat in seats:
            if seat.served.can_be_alone:
                try:
                    seat.served.be_alone(seat is self.alone)
                except Exception as exc:  # noqa: BLE001 - as above
                    self.failed.append((seat, exc))

    def take(self) -> Sequence[Seat]:
        """Up to ``max_batch`` seats that hold an observation now, each of another session.

        Returns:
            Empty when nobody waits. A seat whose session failed is not in it, but in `failed`. Valid until the next
            call of `add` or `remove`.
        """
        if self._linger_s and self._max_batch > 1:
            self._linger(self._seats, self._max_batch)
        return self._taken(self._seats, self._max_batch)

    def take_more(self, batch: Sequence[Seat], but: Sequence[Seat] = (), *, lingers: bool = False) -> Sequence[Seat]:
        """Seats that hold an observation now, as many as a batch has room for.

        Args:
            batch: What is in it already.
            but: Seats that are not to be taken.
            lingers: Whether to wait for more of them.
        """
        others = [seat for seat in self._seats if seat not in batch and seat not in but]
        room = self._max_batch - len(batch)
        if lingers and self._linger_s:
            self._linger(others, room, enough=0)
        return self._taken(others, room)

    def _taken(self, seats: Sequence[Seat], most: int) -> Sequence[Seat]:
        taken: list[Seat] = []
        for seat in seats:
            if len(taken) >= most:
                break
            if self._has_observation(seat):
                taken.append(seat)
        for seat in taken:
            self._seats.remove(seat)
            self._seats.append(seat)
        return taken

    def _has_observation(self, seat: Seat) -> bool:
        try:
            observation = seat.served.take()
        except Exception as exc:  # noqa: BLE001 - whatever a session raises ends that session alone
            self.failed.append((seat, exc))
            return False
        if observation is None:
            return False
        seat.observation = observation
        return True

    def _linger(self, seats: Sequence[Seat], room: int, enough: int = 1) -> None:
        """Once ``enough`` of the seats wait, until there is no room for more, all are there, or the time is up."""
        wanted = min(room, len(seats))
        waiting = self._count_waiting(seats)
        deadline_s = time.monotonic() + self._linger_s
        while enough <= waiting < wanted and (left_s := deadline_s - time.monotonic()) > 0:
            self.bell.wait(left_s)
            waiting = self._count_waiting(seats)

    def _count_waiting(self, seats: Sequence[Seat]) -> int:
        return sum(seat.served.waiting() for seat in seats)
