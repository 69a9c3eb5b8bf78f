"""`ShmTransport`: the client's end of a shared-memory session."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from posix_ipc import BusyError, SignalError

from async_delta_inference.errors import (
    InvalidMessageError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    TransportClosed,
    TransportTimeout,
)
from async_delta_inference.transport.base import Transport, TransportOptions
from async_delta_inference.transport.messages import ActionChunk, Observation, PolicySpec
from async_delta_inference.transport.shm.layout import CHUNK_KIND, ERROR_KIND
from async_delta_inference.transport.shm.link import Link, open_connection, shake_hands, tidy_after
from async_delta_inference.transport.shm.rendezvous import socket_path

__all__ = ["ShmTransport"]

_SLICE_S = 1.0
"""Bound of one wait on a semaphore: its timeout follows the wall clock, which may be set back meanwhile."""

_LEAVE_TIMEOUT_S = 1.0


class ShmTransport(Transport):
    """``shm://name``: a server on the same host, through shared memory.

    A server that went away is not waited for: `PeerGoneError` comes at once, and a new transport connects to its
    successor. ``reconnect_timeout_s`` is not used; ``connect_timeout_s`` includes the wait for a server that starts.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        super().__init__(address, options)
        # Whether a thread is in `_send` or `_receive`. Two locks would cost a tenth of an exchange.
        self._sending = False
        self._receiving = False
        self._link: Link | None = None
        self._path: Path | None = None
        self._hang_up: Callable[[], None] | None = None
        self._loan_slot = -1
        self._newest = -1
        self._waiting_since_s: float | None = None
        self._left_at_end: int | None = None

    # Connecting and closing.

    def _connect(self, policy: PolicySpec) -> None:
        self._path = path = socket_path(self.address)
        connection = open_connection(path, self.options)
        self._hang_up = connection.shut_down
        try:
            segment = shake_hands(connection, path, policy, self.options)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, PeerGoneError):
                tidy_after(path)
                if self._closed.is_set():
                    raise TransportClosed("the transport was closed while it connected") from exc
            raise
        self._adopt(Link(connection, segment, f"the policy server at shm://{self.address}"))

    def _adopt(self, link: Link) -> None:
        """Take what a message needs out of the link, so that its path has no detours."""
        segment = link.segment
        self._link = link
        self._writer = segment.observation_writer()
        self._reader = segment.action_reader()
        self._actions_ready = segment.actions_ready
        self._actions, self._texts = segment.actions, segment.texts
        self._tasks = segment.tasks
        self._slots = [(o.state, tuple(o.images.items())) for o in segment.observations]
        self._task, self._task_number, self._task_bytes = "", 0, 0
        self._slot_task_numbers = [0] * len(self._slots)
        self._chunk_rows = segment.layout.chunk_shape[0]
        # Frees what a transport that is dropped without close() holds. Not at exit: a daemon thread may be waiting
        # then, and the system frees everything anyway.
        weakref.finalize(self, link.dispose).atexit = False
        _open_transports.add(self)

    def _close(self) -> None:
        if self._hang_up is not None:
            self._hang_up()
        link = self._link
        if link is None:
            return
        lost = link.end is not None
        link.end_session()
        # Closing a semaphore that a thread is waiting on is undefined. Whoever does not leave in time is this very
        # thread, interrupted by a signal whose handler closes; then the finalizer closes it later.
        deadline_s = time.monotonic() + _LEAVE_TIMEOUT_S
        while (self._sending or self._receiving) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        if not (self._sending or self._receiving):
            link.dispose()
        if lost and self._path is not None:
            tidy_after(self._path)

    def _abandon(self) -> None:
        """In a forked child: this copy is closed, and the parent's session is as it was."""
        self._usable = False
        self._closed = threading.Event()
        self._closed.set()
        self._close_lock = threading.Lock()
        if self._loan is not None:
            self._retire_loan()
        if self._link is not None:
            self._link.abandon()

    # Observations.

    def _send(self, observation: Observation) -> None:
        timestamp_s = observation.timestamp_s
        if timestamp_s - timestamp_s != 0.0:
            raise InvalidMessageError(f"timestamp_s must be finite, got {timestamp_s}")
        self._sending = True
        try:
            link = self._link
            if link is None or link.end is not None:
                self._raise_end()
            if observation.loan is None:
                slot = self._writer.claim()
                state, images = self._slots[slot]
                state[...] = observation.state
                frames = observation.images
                for name, target in images:
                    target[...] = frames[name]
            else:
                slot, self._loan_slot = self._loan_slot, -1
            if observation.task != self._task or self._slot_task_numbers[slot] != self._task_number:
                self._write_task(slot, observation.task)
            self._newest = timestep = observation.timestep
            if self._waiting_since_s is None:
                self._waiting_since_s = time.monotonic()
            self._writer.publish(
                slot,
                timestep,
                observation.episode,
                timestamp_s,
                self._task_number,
                self._task_bytes,
                1 if observation.must_go else 0,
            )
        finally:
            self._sending = False

    def _write_task(self, slot: int, task: str) -> None:
        """Put the task into the slot; the server reads it once per change of its number."""
        encoded = task.encode()
        if task != self._task:
            self._task, self._task_bytes = task, len(encoded)
            self._task_number = self._task_number % 0xFFFFFFFF + 1
        self._tasks[slot][: len(encoded)] = encoded
        self._slot_task_numbers[slot] = self._task_number

    def _lend(self, policy: PolicySpec) -> Observation:
        self._sending = True
        try:
            link = self._link
            if link is None or link.end is not None:
                self._raise_end()
            self._loan_slot = slot = self._writer.claim()
        finally:
            self._sending = False
        state, images = self._slots[slot]
        # Views of their own, which become read-only when the loan ends; the slot's stay as they are.
        return Observation({name: image.view() for name, image in images}, state.view())

    def _take_back(self, observation: Observation) -> None:
        self._writer.unclaim(self._loan_slot)
        self._loan_slot = -1

    # Actions.

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        self._receiving = True
        try:
            link = self._link
            assert link is not None
            if link.end is not None:
                return self._receive_after_end(0)
            if timeout_s == 0.0:
                return self._poll()
            deadline_s = time.monotonic() + timeout_s
            while True:
                try:
                    self._actions_ready.acquire(timeout_s if timeout_s < _SLICE_S else _SLICE_S)
                except (BusyError, SignalError):
                    self._nothing_yet()
                else:
                    if link.end is not None:
                        return self._receive_after_end(1)
                    chunk = self._take()
                    if chunk is not None:
                        return chunk
                timeout_s = deadline_s - time.monotonic()
                if timeout_s <= 0.0:
                    return None
        finally:
            self._receiving = False

    def _poll(self) -> ActionChunk | None:
        while self._actions_ready.value:
            self._actions_ready.acquire(0)
            if self._link is None or self._link.end is not None:
                return self._receive_after_end(1)
            chunk = self._take()
            if chunk is not None:
                return chunk
        self._nothing_yet()
        return None

    def _take(self) -> ActionChunk | None:
        """The message whose token was acquired; None for one without actions.

        Raises:
            PolicyError: The policy raised.
            ProtocolError: It is not a message.
        """
        slot, (_, timestep, timestamp_s, kind, rows, text_bytes) = self._reader.take()
        if timestep > self._newest:
            raise ProtocolError(f"the server answers timestep {timestep}; the newest sent is {self._newest}")
        self._waiting_since_s = None
        if timestep != self._newest:  # Looked at last: the other thread may send one in this very moment.
            self._waiting_since_s = time.monotonic()
        if kind == CHUNK_KIND:
            actions = self._actions[slot]
            actions = actions.copy() if rows == self._chunk_rows else actions[:rows].copy()
            self._reader.give_back()
            return ActionChunk(actions, timestep, timestamp_s)
        text = bytes(self._texts[slot][:text_bytes]).decode("utf-8", "replace")
        self._reader.give_back()
        if kind == ERROR_KIND:
            raise PolicyError(text, timestep)
        return None

    def _nothing_yet(self) -> None:
        """Raise if there should be something by now."""
        link, since_s = self._link, self._waiting_since_s
        if link is not None and link.end is not None:
            return  # The token that comes with it leads the next turn to the right place.
        if since_s is not None and time.monotonic() - since_s > self.options.inference_timeout_s:
            self._waiting_since_s = None
            raise TransportTimeout(
                f"the policy server at shm://{self.address} has not answered timestep {self._newest} within "
                f"{self.options.inference_timeout_s:g} s"
            )

    def _receive_after_end(self, tokens_held: int) -> ActionChunk | None:
        """What the server finished before it went away, then the reason of its going."""
        assert self._link is not None
        if self._left_at_end is None:
            self._link.await_wake()
            # All tokens are there now, and one of them is the watcher's.
            self._left_at_end = self._actions_ready.value + tokens_held - 1
        while self._left_at_end > 0:
            self._left_at_end -= 1
            chunk = self._take()
            if chunk is not None:
                return chunk
        self._raise_end()

    def _raise_end(self) -> NoReturn:
        if self._link is not None and self._link.end is not None and not self._closed.is_set():
            raise self._link.end
        raise TransportClosed("the transport is closed")


_open_transports: weakref.WeakSet[ShmTransport] = weakref.WeakSet()


def _abandon_all() -> None:
    for transport in list(_open_transports):
        transport._abandon()


os.register_at_fork(after_in_child=_abandon_all)
