"""A session's shared memory and semaphores: reserve, attach, prefault, unlink, close."""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import posix_ipc

from async_delta_inference.errors import ConfigError, ProtocolError
from async_delta_inference.transport.messages import MAX_TASK_BYTES, Observation, PastObservation
from async_delta_inference.transport.shm.shared.layout import (
    ACTION_RECORD,
    ADVICE_OFFSET,
    MAX_ERROR_BYTES,
    OBSERVATION_RECORD,
    RECORD_STRIDE,
    SegmentLayout,
)
from async_delta_inference.transport.shm.shared.prefix_slot import PrefixSlot
from async_delta_inference.transport.shm.shared.ring import (
    ActionReader,
    ActionWriter,
    ObservationReader,
    ObservationWriter,
)

__all__ = ["Segment", "SegmentNames", "bell_name", "sweep"]

logger = logging.getLogger(__name__)

SHM_FOLDER = Path("/dev/shm")
_PAGE_BYTES = 4096
_SEMAPHORES = ("observations-ready", "observations-free", "actions-ready", "actions-free")


@dataclass(frozen=True)
class SegmentNames:
    """The names in /dev/shm that a session uses until both sides are attached.

    Both sides derive them, so that either can remove them when the other dies in between.

    Args:
        server: Identifies the server's socket, see `rendezvous.server_key`.
        session: Chosen by the client at random.
    """

    server: str
    session: str

    @property
    def memory(self) -> str:
        """Name of the segment."""
        return f"/{_prefix(self.server)}{self.session}"

    @property
    def semaphores(self) -> tuple[str, ...]:
        """Names of the four semaphores."""
        return tuple(f"{self.memory}-{what}" for what in _SEMAPHORES)

    @property
    def bell(self) -> str:
        """Name of the server's bell, which all its sessions ring; it stays as long as the server does."""
        return bell_name(self.server)

    def unlink(self) -> None:
        """Remove what there is of them, but for the bell; idempotent. Mapped memory stays until it is unmapped."""
        for remove, name in [(posix_ipc.unlink_shared_memory, self.memory)] + [
            (posix_ipc.unlink_semaphore, name) for name in self.semaphores
        ]:
            try:
                remove(name)
            except (posix_ipc.Error, OSError) as exc:
                # Never made, the other side was faster, or nothing can be made or removed here at all.
                logger.debug("%s was not removed: %s", name, str(exc))


def bell_name(server: str) -> str:
    """Name of the bell of the server with this key."""
    return f"/{_prefix(server)}bell"


def sweep(server: str) -> list[str]:
    """Remove the names that a killed server of this key left, and return them.

    Only the process that owns the server's socket may call this, or one that holds the folder's lock and found that
    nobody owns it: there can be no session under the key then.
    """
    prefix = _prefix(server)
    removed = []
    for path in _entries():
        if path.name.removeprefix("sem.").startswith(prefix):
            try:
                path.unlink(missing_ok=True)
                removed.append(path.name)
            except OSError as exc:
                # Another user's, or /dev/shm is read-only: no reason not to serve. Names of sessions are random.
                logger.warning("%s is in the way and cannot be removed: %s", path, str(exc))
    return removed


class Segment:
    """Mapped memory, four semaphores and the arrays over both. Made by `create` or `attach`.

    Closing releases the semaphores at once; the memory stays mapped for as long as anybody holds an array of it.

    Args:
        layout: Offsets and sizes.
        buffer: The mapping.
        semaphores: In the order of `SegmentNames.semaphores`; and on the client's side the server's bell.
    """

    def __init__(self, layout: SegmentLayout, buffer: mmap.mmap, semaphores: list[posix_ipc.Semaphore]) -> None:
        self.layout = layout
        self.observations_ready, self.observations_free, self.actions_ready, self.actions_free, *bell = semaphores
        self._semaphores = semaphores
        if bell:
            self.ring: Callable[[], None] = bell[0].release
            """Wakes the server; only a client's segment has it."""
        self._buffer = buffer
        self._memory = memoryview(buffer)
        self.advice = self._memory[ADVICE_OFFSET : ADVICE_OFFSET + 1]
        """One byte, see `layout.ADVICE_OFFSET`; the server writes it."""
        self.observations = [self._observation(slot) for slot in range(layout.observation_slots)]
        self.prefixes = [self._prefix(slot) for slot in range(layout.observation_slots)] if layout.prefix else []
        self.tasks = [self._task(slot) for slot in range(layout.observation_slots)]
        self.action_bytes = [self._action_bytes(slot) for slot in range(layout.action_slots)]

    @classmethod
    def create(cls, names: SegmentNames, layout: SegmentLayout) -> Segment:
        """Reserve, touch and describe a new segment. On an error nothing of it is left.

        Raises:
            ConfigError: /dev/shm is full, read-only or absent; names the size and the remedy.
        """
        semaphores: list[posix_ipc.Semaphore] = []
        try:
            buffer = _reserve(names.memory, layout.segment_bytes)
            for name in names.semaphores:
                semaphores.append(posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0))
        except (OSError, posix_ipc.Error) as exc:
            for semaphore in semaphores:
                semaphore.close()
            names.unlink()
            raise ConfigError(_explain(exc, layout.segment_bytes)) from exc
        except BaseException:
            names.unlink()
            raise
        buffer[:_PAGE_BYTES] = layout.header().ljust(_PAGE_BYTES, b"\0")
        buffer[ADVICE_OFFSET] = 1
        _touch(buffer)
        return cls(layout, buffer, semaphores)

    @classmethod
    def attach(cls, names: SegmentNames, layout: SegmentLayout) -> Segment:
        """Map what the peer created, and make its pages present here, too.

        Raises:
            ProtocolError: It is not there, belongs to another user, or is not what the handshake said.
        """
        semaphores: list[posix_ipc.Semaphore] = []
        try:
            buffer = _map(names.memory, layout.segment_bytes)
            semaphores.extend(posix_ipc.Semaphore(name) for name in (*names.semaphores, names.bell))
        except (OSError, ValueError, posix_ipc.Error) as exc:
            for semaphore in semaphores:
                semaphore.close()
            raise ProtocolError(
                f"cannot attach to the server's shared memory {names.memory}: {exc}. "
                f"Both processes must see the same {SHM_FOLDER} (docker run --ipc=...)"
            ) from exc
        header = layout.header()
        if buffer[: len(header)] != header:
            for semaphore in semaphores:
                semaphore.close()
            raise ProtocolError("the header of the server's segment is not what was agreed")
        _touch(buffer)
        return cls(layout, buffer, semaphores)

    def observation_writer(self) -> ObservationWriter:
        """The client's end of the observation ring."""
        store = partial(OBSERVATION_RECORD.pack_into, self._buffer)
        return ObservationWriter(
            self.observations_ready, self.observations_free, store, list(self._observation_positions())
        )

    def observation_reader(self) -> ObservationReader:
        """The server's end of the observation ring."""
        load = partial(OBSERVATION_RECORD.unpack_from, self._buffer)
        return ObservationReader(self.observations_free, load, list(self._observation_positions()), MAX_TASK_BYTES)

    def action_writer(self) -> ActionWriter:
        """The server's end of the action ring."""
        store = partial(ACTION_RECORD.pack_into, self._buffer)
        return ActionWriter(self.actions_ready, store, list(self._action_positions()))

    def action_reader(self) -> ActionReader:
        """The client's end of the action ring."""
        load = partial(ACTION_RECORD.unpack_from, self._buffer)
        rows, _ = self.layout.chunk_shape
        return ActionReader(
            self.actions_free, load, list(self._action_positions()), rows, MAX_ERROR_BYTES, on_room=self._ring_if_asked
        )

    def _ring_if_asked(self) -> None:
        if self.advice[0]:
            self.ring()

    @property
    def memory(self) -> memoryview:
        """All of it."""
        return self._memory

    @property
    def is_open(self) -> bool:
        """Whether `close` was not called yet."""
        return bool(self._semaphores)

    def close(self) -> None:
        """Release the semaphores, and let go of the arrays; nobody may be waiting in this process. Idempotent."""
        semaphores, self._semaphores = self._semaphores, []
        for semaphore in semaphores:
            semaphore.close()
        if semaphores:
            self.observations, self.prefixes, self.tasks, self.action_bytes = [], [], [], []
            del self._memory, self._buffer, self.advice

    def _observation_positions(self) -> Iterator[int]:
        start = self.layout.observation_records_offset
        return iter(range(start, start + self.layout.observation_slots * RECORD_STRIDE, RECORD_STRIDE))

    def _action_positions(self) -> Iterator[int]:
        start = self.layout.action_records_offset
        return iter(range(start, start + self.layout.action_slots * RECORD_STRIDE, RECORD_STRIDE))

    def _observation(self, slot: int) -> Observation:
        layout = self.layout
        starts = [layout.observation_slot_offset(slot) + i * layout.step_bytes for i in range(layout.n_obs_steps)]
        newest, *history = (self._seen(start) for start in starts)
        return Observation(newest.images, newest.state, history=tuple(history))

    def _seen(self, start: int) -> PastObservation:
        features = self.layout.features
        return PastObservation(
            images={
                name: np.ndarray(shape, np.uint8, self._memory, start + self.layout.image_offsets[name])
                for name, shape in features.image_shapes
            },
            state=np.ndarray(features.state_shape, np.float32, self._memory, start),
        )

    def _prefix(self, slot: int) -> PrefixSlot:
        start = self.layout.observation_slot_offset(slot) + self.layout.prefix_offset
        return PrefixSlot(self._memory[start:], self.layout.prefix, self.layout.chunk_shape[1])

    def _task(self, slot: int) -> memoryview:
        start = self.layout.observation_slot_offset(slot) + self.layout.task_offset
        return self._memory[start : start + MAX_TASK_BYTES]

    def _action_bytes(self, slot: int) -> memoryview:
        start = self.layout.action_slot_offset(slot)
        return self._memory[start : start + self.layout.action_slot_bytes]


def _prefix(server: str) -> str:
    return f"adi-{os.geteuid()}-{server}-"


def _entries() -> Iterator[Path]:
    return SHM_FOLDER.iterdir() if SHM_FOLDER.is_dir() else iter(())


def _reserve(name: str, size: int) -> mmap.mmap:
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    try:
        # Without this a full /dev/shm is a SIGBUS at the first write.
        os.posix_fallocate(memory.fd, 0, size)
        return mmap.mmap(memory.fd, size)
    finally:
        memory.close_fd()


def _map(name: str, size: int) -> mmap.mmap:
    memory = posix_ipc.SharedMemory(name)
    try:
        status = os.fstat(memory.fd)
        if status.st_uid != os.geteuid() or status.st_size != size:
            raise ValueError(f"it has {status.st_size} bytes and belongs to user {status.st_uid}, agreed were {size}")
        return mmap.mmap(memory.fd, size)
    finally:
        memory.close_fd()


def _touch(buffer: mmap.mmap) -> None:
    """Write to every page, because a first touch costs forty times a warm one; while nobody uses them yet."""
    pages = np.frombuffer(buffer, np.uint8)[::_PAGE_BYTES]
    pages[:] = pages


def _explain(exc: Exception, size: int) -> str:
    if not isinstance(exc, OSError):
        return f"cannot reserve {size / 1e6:.1f} MB of shared memory: {exc}"
    if exc.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
        return (
            f"a session needs {size / 1e6:.1f} MB of shared memory and {SHM_FOLDER} has {_room()}: "
            "give it more (docker run --shm-size=1g), use smaller or fewer images, or use --transport=grpc"
        )
    return (
        f"cannot create {size / 1e6:.1f} MB of shared memory in {SHM_FOLDER}: {exc.strerror or exc}. "
        "Mount it writable, or use --transport=grpc"
    )


def _room() -> str:
    try:
        room = os.statvfs(SHM_FOLDER)
    except OSError as exc:
        return f"an unknown size ({exc.strerror})"
    return f"{room.f_bavail * room.f_frsize / 1e6:.1f} of {room.f_blocks * room.f_frsize / 1e6:.1f} MB free"
