"""The two rings as pure logic: who owns which slot, and when. No process, no memory, no clock.

Ownership of a slot changes hands in one way only: its owner releases a semaphore, and the other side's acquire of that
semaphore succeeds. Everything else here is private to one side. A semaphore is an atomic counter that every POSIX
system has and that Python can reach; a release makes all that was written before it visible to whoever acquires it.

Observations, newest wins. ``ready`` counts unread publications and is 0 or 1. To replace an unread observation the
writer takes the token back itself: whoever gets it owns the slot, and there is no third outcome. ``free`` counts the
slots that the reader has given back, in the order in which it took them.

Actions, in order, none dropped. ``ready`` counts chunks to be read, ``free`` the slots that may be written.

The classes take semaphores and the functions that store and load a record as arguments; the tests give them a model
and search all interleavings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from posix_ipc import BusyError

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.shm.layout import CHUNK_KIND, FILTERED_KIND, MUST_GO_FLAG

__all__ = ["ActionReader", "ActionWriter", "ObservationReader", "ObservationWriter", "Tokens"]

ObservationRecord = tuple[int, int, int, float, int, int, int, int]
"""sequence, timestep, episode, timestamp_s, slot, number of the task, bytes of the task, flags."""

ActionRecord = tuple[int, int, float, int, int, int]
"""sequence, timestep, timestamp_s, kind, rows, bytes of text."""

RETURN_TIMEOUT_S = 1.0


class Tokens(Protocol):
    """The part of `posix_ipc.Semaphore` that the rings use."""

    @property
    def value(self) -> int:
        """How many tokens there are at this moment."""

    def acquire(self, timeout: float | None = None) -> None:
        """Take a token; `BusyError` when none came within ``timeout`` seconds."""

    def release(self) -> None:
        """Add a token."""


class ObservationWriter:
    """The client's end: claims a slot, fills it, publishes it. Never waits for a reader that keeps the rules.

    Args:
        ready: Unread publications.
        free: Slots given back.
        store: Writes a record, ``store(position, *record)``.
        positions: Where the records are, one per slot.
    """

    def __init__(self, ready: Tokens, free: Tokens, store: Callable[..., None], positions: Sequence[int]) -> None:
        self._ready = ready
        self._free = free
        self._store = store
        self._positions = positions
        self._slots = len(positions)
        self._mine = list(range(self._slots))
        self._taken: deque[int] = deque()
        self._unread = -1
        self._unread_flags = 0
        self._sequence = 1

    def claim(self) -> int:
        """A slot that is the writer's to fill, until `publish` or `unclaim`.

        The last one used comes first: its memory is still in the cache.

        Raises:
            ProtocolError: The reader took observations and does not give their slots back.
        """
        if self._unread >= 0 and not self._ready.value:
            # Only the writer adds tokens, so none means that the reader has this one for good.
            self._move_on()
        taken = self._taken
        while taken:
            try:
                self._free.acquire(0)
            except BusyError:
                break
            self._mine.append(taken.popleft())
        if not self._mine:
            self._await_return()
        return self._mine.pop()

    def unclaim(self, slot: int) -> None:
        """Undo `claim`."""
        self._mine.append(slot)

    def publish(
        self, slot: int, timestep: int, episode: int, timestamp_s: float, task: int, task_bytes: int, flags: int
    ) -> None:
        """Make ``slot`` the one unread observation, in the place of an older one that nobody has read.

        An observation that must be answered hands this on to the one that replaces it.
        """
        unread = self._unread
        if unread >= 0:
            try:
                self._ready.acquire(0)
            except BusyError:
                self._move_on()
            else:
                self._mine.append(unread)
                flags |= self._unread_flags & MUST_GO_FLAG
        sequence = self._sequence
        position = self._positions[sequence % self._slots]
        self._store(position, sequence, timestep, episode, timestamp_s, slot, task, task_bytes, flags)
        self._unread = slot
        self._unread_flags = flags
        self._ready.release()

    def _move_on(self) -> None:
        self._taken.append(self._unread)
        self._unread = -1
        self._sequence += 1

    def _await_return(self) -> None:
        # A reader gives a slot back before it takes another, so this token is on its way at the latest.
        try:
            self._free.acquire(RETURN_TIMEOUT_S)
        except BusyError:
            raise ProtocolError("the server takes observations and does not give their slots back") from None
        self._mine.append(self._taken.popleft())


class ObservationReader:
    """The server's end. The caller acquires ``ready``, calls `take`, reads the slot and calls `give_back`, in turn.

    Args:
        free: Slots given back.
        load: Reads a record, ``load(position)``.
        positions: Where the records are, one per slot.
        max_task_bytes: Room for the task in a slot.
    """

    def __init__(
        self, free: Tokens, load: Callable[[int], ObservationRecord], positions: Sequence[int], max_task_bytes: int
    ) -> None:
        self._free = free
        self._load = load
        self._positions = positions
        self._slots = len(positions)
        self._max_task_bytes = max_task_bytes
        self._sequence = 1
        self.give_back = free.release

    def take(self) -> ObservationRecord:
        """The record of the observation whose token was just acquired; its slot is the reader's until `give_back`.

        Raises:
            ProtocolError: There is no such observation, or the record points outside.
        """
        sequence = self._sequence
        record = self._load(self._positions[sequence % self._slots])
        if record[0] != sequence:
            raise ProtocolError(f"observation record {sequence} is numbered {record[0]}")
        _, timestep, episode, timestamp_s, slot, _, task_bytes, flags = record
        if slot >= self._slots or task_bytes > self._max_task_bytes or flags > MUST_GO_FLAG:
            raise ProtocolError(f"observation record {sequence}: slot {slot}, task of {task_bytes} bytes, {flags=}")
        if timestep < 0 or episode < 0 or timestamp_s - timestamp_s != 0.0:
            raise ProtocolError(f"observation record {sequence}: {timestep=}, {episode=}, {timestamp_s=}")
        self._sequence = sequence + 1
        return record

    def peek_timestep(self) -> int:
        """Timestep of the observation that would be taken next; for diagnosis only, it may change meanwhile."""
        return self._load(self._positions[self._sequence % self._slots])[1]


class ActionWriter:
    """The server's end. The caller acquires ``free``, fills the slot `claim` names and calls `publish`, in turn.

    Args:
        ready: Chunks to be read.
        store: Writes a record, ``store(position, *record)``.
        positions: Where the records are, one per slot.
    """

    def __init__(self, ready: Tokens, store: Callable[..., None], positions: Sequence[int]) -> None:
        self._ready = ready
        self._store = store
        self._positions = positions
        self._slots = len(positions)
        self._sequence = 1

    def claim(self) -> int:
        """The slot whose token was just acquired."""
        return self._sequence % self._slots

    def publish(self, timestep: int, timestamp_s: float, kind: int, rows: int, text_bytes: int) -> None:
        """Hand the claimed slot to the client."""
        sequence = self._sequence
        self._store(self._positions[sequence % self._slots], sequence, timestep, timestamp_s, kind, rows, text_bytes)
        self._sequence = sequence + 1
        self._ready.release()


class ActionReader:
    """The client's end. The caller acquires ``ready``, calls `take`, copies the slot and calls `give_back`, in turn.

    Args:
        free: Slots that may be written.
        load: Reads a record, ``load(position)``.
        positions: Where the records are, one per slot.
        max_rows: Rows of the largest chunk.
        max_text_bytes: Room for a text in a slot.
    """

    def __init__(
        self,
        free: Tokens,
        load: Callable[[int], ActionRecord],
        positions: Sequence[int],
        max_rows: int,
        max_text_bytes: int,
    ) -> None:
        self._load = load
        self._positions = positions
        self._slots = len(positions)
        self._max_rows = max_rows
        self._max_text_bytes = max_text_bytes
        self._sequence = 1
        self.give_back = free.release

    def pending(self) -> bool:
        """Whether the next record is there already; exact once nobody writes any more."""
        return self._load(self._positions[self._sequence % self._slots])[0] == self._sequence

    def take(self) -> tuple[int, ActionRecord]:
        """The slot and the record of the message whose token was just acquired.

        Raises:
            ProtocolError: There is no such message, or the record points outside.
        """
        sequence = self._sequence
        slot = sequence % self._slots
        record = self._load(self._positions[slot])
        if record[0] != sequence:
            raise ProtocolError(f"action record {sequence} is numbered {record[0]}")
        _, timestep, timestamp_s, kind, rows, text_bytes = record
        if not CHUNK_KIND <= kind <= FILTERED_KIND or rows > self._max_rows or text_bytes > self._max_text_bytes:
            raise ProtocolError(f"action record {sequence}: {kind=}, {rows=}, text of {text_bytes} bytes")
        if timestep < 0 or timestamp_s - timestamp_s != 0.0 or (kind == CHUNK_KIND and rows < 1):
            raise ProtocolError(f"action record {sequence}: {timestep=}, {timestamp_s=}, {rows=}")
        self._sequence = sequence + 1
        return slot, record
