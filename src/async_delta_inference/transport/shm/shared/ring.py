"""The two rings as pure logic: who owns which slot, and when. No process, no memory, no clock.

Ownership of a slot changes hands in one way only: its owner releases a semaphore, and the other side's acquire of that
semaphore succeeds. Everything else here is private to one side. A semaphore is an atomic counter that every POSIX
system has and that Python can reach; a release makes all that was written before it visible to whoever acquires it.

Observations, newest wins. ``ready`` counts unread publications and is 0 or 1. To replace an unread observation the
writer takes the token back itself: whoever gets it owns the slot, and there is no third outcome. ``free`` counts the
slots that the reader has given back, in the order in which it took them. Every observation that is read gets one reply,
after its slot was given back, so that a reply is a receipt, too: then the token in ``free`` is collected later.

Actions, in order, none dropped. ``ready`` counts messages to be read. Slots go back by the half ring: a token in
``free`` stands for half of them.

The classes take semaphores and the functions that store and load a record as arguments; the tests give them a model
and search all interleavings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from posix_ipc import BusyError

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.shm.shared.layout import CHUNK_KIND, ERROR_KIND, FILTERED_KIND, MUST_GO_FLAG

__all__ = ["ActionReader", "ActionWriter", "ObservationReader", "ObservationWriter", "Tokens"]

ObservationRecord = tuple[int, int, int, float, int, int, int, int]
"""sequence, timestep, episode, timestamp_s, slot, number of the task, bytes of the task, flags."""

ActionRecord = tuple[int, int, float, int, int, int, int]
"""sequence, timestep, timestamp_s, published_ns, kind, rows, bytes of text."""

RETURN_TIMEOUT_S = 1.0

_MAX_OWED = 64
"""Tokens left uncollected: gathering many at once is cheaper than one at a time."""


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
        self.answered = 0
        """How many replies have come; set by the thread that receives them."""
        self._ready = ready
        self._free = free
        self._store = store
        self._positions = positions
        self._slots = len(positions)
        self._mine = list(range(self._slots))
        self._taken: list[int] = []
        self._owed = 0
        self._unread = -1
        self._unread_flags = 0
        self._sequence = 1

    def claim(self) -> int:
        """A slot that is the writer's to fill, until `publish` or `unclaim`.

        The last one used comes first: its memory is still in the cache.

        Raises:
            ProtocolError: The reader took observations and does not give their slots back.
        """
        slot = self._unread
        if slot >= 0:
            if self.answered >= self._sequence and not self._taken and self._owed < _MAX_OWED:
                self._unread = -1
                self._sequence += 1
                self._owed += 1
                return slot
            if not self._ready.value:
                # Only the writer adds tokens, so none means that the reader has this one for good.
                self._move_on()
        self._collect()
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
        if self._unread >= 0:
            try:
                self._ready.acquire(0)
            except BusyError:
                self._move_on()
            else:
                self._mine.append(self._unread)
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

    def _collect(self) -> None:
        """Take the tokens that have come back: those of replies first, for they are the oldest."""
        try:
            while self._owed:
                self._free.acquire(0)
                self._owed -= 1
            while self._taken:
                self._free.acquire(0)
                self._mine.append(self._taken.pop(0))
        except BusyError:
            return

    def _await_return(self) -> None:
        # A reader gives a slot back before it takes another, so this token is on its way at the latest.
        try:
            self._free.acquire(RETURN_TIMEOUT_S)
        except BusyError:
            raise ProtocolError("the server takes observations and does not give their slots back") from None
        self._mine.append(self._taken.pop(0))


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
        found, _, _, timestamp_s, slot, _, task_bytes, _ = record
        if (
            found != sequence
            or slot >= self._slots
            or task_bytes > self._max_task_bytes
            or timestamp_s - timestamp_s != 0.0
        ):
            raise ProtocolError(f"observation record {sequence} is {record}")
        self._sequence = sequence + 1
        return record

    def peek_timestep(self) -> int:
        """Timestep of the observation that would be taken next; for diagnosis only, it may change meanwhile."""
        return self._load(self._positions[self._sequence % self._slots])[1]


class ActionWriter:
    """The server's end: while there is `room`, fill the slot that `claim` names, and `publish`.

    Args:
        ready: Messages to be read.
        store: Writes a record, ``store(position, *record)``.
        positions: Where the records are, one per slot.
    """

    def __init__(self, ready: Tokens, store: Callable[..., None], positions: Sequence[int]) -> None:
        self._ready = ready
        self._store = store
        self._positions = positions
        self._slots = len(positions)
        self._sequence = 1
        self.room = self._slots
        """Slots that may be written."""

    def add_room(self) -> None:
        """Count a token of ``free`` that the caller acquired."""
        self.room += self._slots // 2

    def claim(self) -> int:
        """The slot to fill."""
        return self._sequence % self._slots

    def publish(
        self, timestep: int, timestamp_s: float, published_ns: int, kind: int, rows: int, text_bytes: int
    ) -> None:
        """Hand the claimed slot to the client."""
        sequence = self._sequence
        self._store(
            self._positions[sequence % self._slots],
            sequence,
            timestep,
            timestamp_s,
            published_ns,
            kind,
            rows,
            text_bytes,
        )
        self._sequence = sequence + 1
        self.room -= 1
        self._ready.release()


class ActionReader:
    """The client's end. The caller acquires ``ready``, calls `take` and copies the slot before it does so again.

    Args:
        free: Halves of the ring that may be written again.
        load: Reads a record, ``load(position)``.
        positions: Where the records are, one per slot.
        max_rows: Rows of the largest chunk.
        max_text_bytes: Room for a text in a slot.
        on_room: Called after half of the ring was given back: the server may be waiting for that.
    """

    def __init__(
        self,
        free: Tokens,
        load: Callable[[int], ActionRecord],
        positions: Sequence[int],
        max_rows: int,
        max_text_bytes: int,
        on_room: Callable[[], object],
    ) -> None:
        self._free = free
        self._on_room = on_room
        self._load = load
        self._positions = positions
        self._slots = len(positions)
        self._half = self._slots // 2
        self._max_rows = max_rows
        self._max_text_bytes = max_text_bytes
        self._sequence = 1

    def take(self) -> ActionRecord:
        """The record of the message whose token was just acquired. Its slot is its sequence, modulo the slots.

        Raises:
            ProtocolError: There is no such message, or the record points outside.
        """
        sequence = self._sequence
        if sequence % self._half == 1 % self._half and sequence > self._half:
            self._free.release()  # The half before this message has been copied.
            self._on_room()
        record = self._load(self._positions[sequence % self._slots])
        found, _, timestamp_s, _, kind, rows, text_bytes = record
        if (
            found != sequence
            or rows > self._max_rows
            or text_bytes > self._max_text_bytes
            or timestamp_s - timestamp_s != 0.0
            or not (rows if kind == CHUNK_KIND else ERROR_KIND <= kind <= FILTERED_KIND)
        ):
            raise ProtocolError(f"action record {sequence} is {record}")
        self._sequence = sequence + 1
        return record
