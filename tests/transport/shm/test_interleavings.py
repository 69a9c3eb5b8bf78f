"""All interleavings of small rings: newest wins, nothing torn, no lost wake-up, no deadlock; and seeded bugs found."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
from interleaving import Explorer, Shared, Violation
from posix_ipc import BusyError

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.shm.shared import ring
from async_delta_inference.transport.shm.shared.layout import CHUNK_KIND, MUST_GO_FLAG
from async_delta_inference.transport.shm.shared.ring import (
    ActionReader,
    ActionWriter,
    ObservationReader,
    ObservationWriter,
)

SLOTS = range(3)
ACTION_SLOTS = range(2)
BLANK_OBSERVATION = (0, 0, 0.0, 0, 0, 0, 0)
BLANK_ACTION = (0, 0.0, 0, 0, 0)
MEMORY = (
    {("observations", i, 0): 0 for i in SLOTS}
    | {("observations", i, 1): BLANK_OBSERVATION for i in SLOTS}
    | {("actions", i, 0): 0 for i in ACTION_SLOTS}
    | {("actions", i, 1): BLANK_ACTION for i in ACTION_SLOTS}
    | {"answered": 0, "ghost stored": 0, "ghost published": 0, "ghost expected": 0}
)


class SharedWriter(ObservationWriter):
    """The sender's and the receiver's threads share ``answered``; here every look at it is a step."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        store, _ = shared.record("observations")
        super().__init__(shared.semaphore("ready"), shared.semaphore("free"), store, SLOTS)

    @property
    def answered(self) -> int:
        return self._shared.load("answered")

    @answered.setter
    def answered(self, count: int) -> None:
        if count:
            self._shared.store("answered", count)


def sender(count: int, writer_class: type[SharedWriter] = SharedWriter) -> Callable[[Shared], None]:
    def send(shared: Shared) -> None:
        writer = writer_class(shared)
        for timestep in range(1, count + 1):
            slot = writer.claim()
            shared.store(("frame", slot, 0), timestep)
            shared.store(("frame", slot, 1), timestep)
            # Only the first must be answered; whatever replaces it inherits that.
            writer.publish(slot, timestep, 0, 0.0, 0, 0, MUST_GO_FLAG if timestep == 1 else 0)

    return send


def take(shared: Shared, reader: ObservationReader, last: int) -> int:
    """One observation, checked; its timestep."""
    shared.semaphore("ready").acquire()
    _, timestep, _, _, slot, _, _, flags = reader.take()
    seen = (shared.load(("frame", slot, 0)), shared.load(("frame", slot, 1)))
    assert seen == (timestep, timestep), f"torn or foreign frame: {seen} of timestep {timestep}"
    assert timestep > last, f"{timestep} after {last}"
    assert flags == MUST_GO_FLAG or last, "the must_go of the first was lost"
    assert timestep == shared.load("ghost expected"), "not the newest"
    return timestep


def reading_server(count: int) -> Callable[[Shared], None]:
    """Takes observations, without replies."""

    def serve(shared: Shared) -> None:
        _, load = shared.record("observations")
        reader = ObservationReader(shared.semaphore("free"), load, SLOTS, 0)
        last = 0
        while last < count:
            last = take(shared, reader, last)
            reader.give_back()

    return serve


def early_server(count: int) -> Callable[[Shared], None]:
    """Gives the slot back before it has read it."""

    def serve(shared: Shared) -> None:
        _, load = shared.record("observations")
        reader = ObservationReader(shared.semaphore("free"), load, SLOTS, 0)
        give_back, reader.give_back = reader.give_back, lambda: None
        last = 0
        while last < count:
            give_back()
            last = take(shared, reader, last)

    return serve


def replying_server(count: int) -> Callable[[Shared], None]:
    def serve(shared: Shared) -> None:
        _, load = shared.record("observations")
        reader = ObservationReader(shared.semaphore("free"), load, SLOTS, 0)
        store, _ = shared.record("actions")
        writer = ActionWriter(shared.semaphore("actions ready"), store, ACTION_SLOTS)
        last = 0
        while last < count:
            last = take(shared, reader, last)
            reader.give_back()
            reply(shared, writer, last)

    return serve


def reply(shared: Shared, writer: ActionWriter, timestep: int) -> None:
    if not writer.room:
        shared.semaphore("actions free").acquire()
        writer.add_room()
    slot = writer.claim()
    shared.store(("chunk", slot, 0), timestep)
    shared.store(("chunk", slot, 1), timestep)
    writer.publish(timestep, 0.0, 0, CHUNK_KIND, 1, 0)


def action_source(count: int) -> Callable[[Shared], None]:
    """Replies only, to nobody's observations."""

    def serve(shared: Shared) -> None:
        store, _ = shared.record("actions")
        writer = ActionWriter(shared.semaphore("actions ready"), store, ACTION_SLOTS)
        for timestep in range(1, count + 1):
            reply(shared, writer, timestep)

    return serve


def receiver(count: int, *, every: bool, reader_class: type[ActionReader] = ActionReader) -> Callable[[Shared], None]:
    def receive(shared: Shared) -> None:
        _, load = shared.record("actions")
        reader = reader_class(shared.semaphore("actions free"), load, ACTION_SLOTS, 1, 0, lambda: None)
        last = 0
        while last < count:
            shared.semaphore("actions ready").acquire()
            sequence, timestep, *_ = reader.take()
            shared.store("answered", sequence)
            slot = sequence % len(ACTION_SLOTS)
            seen = (shared.load(("chunk", slot, 0)), shared.load(("chunk", slot, 1)))
            assert seen == (timestep, timestep), f"torn or foreign chunk: {seen} of timestep {timestep}"
            assert timestep == last + 1 if every else timestep > last
            last = timestep

    return receive


def watch_newest(side: str, step: tuple[Any, ...], result: Any, memory: dict[Hashable, Any]) -> None:
    """Ghosts: which publication is the newest at the moment in which the server gets the token."""
    if side == "sender" and step[0] == "store" and step[1][0] == "observations" and step[1][2] == 1:
        memory["ghost stored"] = step[2][0]
    elif side == "sender" and step == ("release", "ready"):
        memory["ghost published"] = memory["ghost stored"]
    elif side == "server" and step == ("acquire", "ready"):
        memory["ghost expected"] = memory["ghost published"]


def explore(**programs: Callable[[Shared], None]) -> Explorer:
    explorer = Explorer(programs, dict(MEMORY), watch_newest)
    explorer.run()
    return explorer


@pytest.mark.parametrize("count", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_observation_ring(count: int) -> None:
    assert explore(sender=sender(count), server=reading_server(count)).visited > 10_000


def test_action_ring() -> None:
    assert explore(server=action_source(9), receiver=receiver(9, every=True)).visited > 200


@pytest.mark.parametrize("count", [3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("max_owed", [0, 1, 64])
def test_both_rings_with_three_threads(monkeypatch: pytest.MonkeyPatch, max_owed: int, count: int) -> None:
    """The sending and the receiving thread of the client, and the server; replies are receipts here."""
    monkeypatch.setattr(ring, "_MAX_OWED", max_owed)
    explore(sender=sender(count), server=replying_server(count), receiver=receiver(count, every=False))


# The test of the test: each of these has one step out of order or left out, and must be caught.


class ReleasesBeforeItStores(SharedWriter):
    def publish(self, slot: int, timestep: int, *rest: Any) -> None:
        store = self._store
        late: list[tuple[Any, ...]] = []
        self._store = lambda *record: late.append(record)
        super().publish(slot, timestep, *rest)
        self._store = store
        store(*late.pop())


class OverwritesWithoutTheToken(SharedWriter):
    def publish(self, slot: int, *rest: Any) -> None:
        if self._unread >= 0:
            self._mine.append(self._unread)
            self._unread = -1
        super().publish(slot, *rest)


class TakesTheSlotBackWhenItIsRead(SharedWriter):
    """As if a taken observation were already given back."""

    def _collect(self) -> None:
        self._mine.extend(self._taken)
        self._taken.clear()


class ForgetsTheWakeUp(SharedWriter):
    def publish(self, *record: Any) -> None:
        retracting = self._unread >= 0
        ready = self._ready
        if retracting:
            self._ready = _Mute(ready)
        super().publish(*record)
        self._ready = ready


class _Mute:
    def __init__(self, semaphore: Any) -> None:
        self.acquire = semaphore.acquire

    def release(self) -> None:
        pass


class DropsMustGo(SharedWriter):
    def publish(self, *record: Any) -> None:
        self._unread_flags = 0
        super().publish(*record)


@pytest.mark.parametrize(
    "writer",
    [
        ReleasesBeforeItStores,
        OverwritesWithoutTheToken,
        TakesTheSlotBackWhenItIsRead,
        ForgetsTheWakeUp,
        DropsMustGo,
    ],
)
def test_seeded_bug_of_the_writer_is_found(writer: type[SharedWriter]) -> None:
    with pytest.raises(Violation):
        explore(sender=sender(4, writer), server=reading_server(4))


def test_slot_given_back_too_early_is_found() -> None:
    with pytest.raises(Violation):
        explore(sender=sender(4), server=early_server(4))


class GivesTheHalfBackTooEarly(ActionReader):
    def take(self) -> ring.ActionRecord:
        self._free.release()
        free, self._free = self._free, _Silent()
        record = super().take()
        self._free = free
        return record


class _Silent:
    def release(self) -> None:
        pass


def test_chunk_given_back_too_early_is_found() -> None:
    with pytest.raises(Violation):
        explore(server=action_source(5), receiver=receiver(5, every=True, reader_class=GivesTheHalfBackTooEarly))


def test_reader_that_keeps_slots_is_an_error_and_not_a_hang() -> None:
    """Without processes: a reader that takes and never gives back is found out within the bounded wait."""

    class Counter:
        def __init__(self) -> None:
            self.value = 0

        def acquire(self, timeout: float | None = None) -> None:
            if not self.value:
                raise BusyError
            self.value -= 1

        def release(self) -> None:
            self.value += 1

    ready, free = Counter(), Counter()
    writer = ObservationWriter(ready, free, lambda *record: None, SLOTS)
    for timestep in range(len(SLOTS)):
        writer.publish(writer.claim(), timestep, 0, 0.0, 0, 0, 0)
        ready.acquire(0)
    with pytest.raises(ProtocolError, match="give their slots back"):
        writer.claim()
