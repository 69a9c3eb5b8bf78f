"""`ShmTransport`: the client's end of a shared-memory session, from its beginning to its end."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from async_delta_inference.errors import PeerGoneError, TransportClosed
from async_delta_inference.transport.client import TransportOptions
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.shm.exchange import ShmExchange
from async_delta_inference.transport.shm.link import Link, open_connection, shake_hands, tidy_after
from async_delta_inference.transport.shm.rendezvous import socket_path

__all__ = ["ShmTransport"]

_LEAVE_TIMEOUT_S = 1.0


class ShmTransport(ShmExchange):
    """``shm://name``: a server on the same host, through shared memory.

    A server that went away is not waited for: `PeerGoneError` comes at once, and a new transport connects to its
    successor. ``reconnect_timeout_s`` is not used; ``connect_timeout_s`` includes the wait for a server that starts.

    A forked child gets a closed copy. An exception that a signal's handler raises ends a wait if it is a
    KeyboardInterrupt; posix_ipc loses others.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        super().__init__(address, options)
        self._path: Path | None = None
        self._hang_up: Callable[[], None] | None = None
        self._linked = False

    def _connect(self, policy: SessionSpec) -> None:
        self._path = path = socket_path(self.address)
        connection = open_connection(path, self.options)
        self._hang_up = connection.shut_down
        try:
            if self._closed.is_set():  # By another thread, while there was nothing to hang up yet.
                raise TransportClosed("the transport was closed while it connected")
            segment = shake_hands(connection, path, policy, self.options)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, PeerGoneError):
                tidy_after(path)
                if self._closed.is_set():
                    raise TransportClosed("the transport was closed while it connected") from exc
            raise
        link = Link(connection, segment, f"the policy server at shm://{self.address}")
        self._adopt(link)
        self._linked = True
        # Frees what a transport that is dropped without close() holds. Not at exit: a daemon thread may be waiting
        # then, and the system frees everything anyway.
        weakref.finalize(self, link.dispose).atexit = False
        _open_transports.add(self)

    def _close(self) -> None:
        if not self._linked:
            if self._hang_up is not None:
                self._hang_up()
            return
        link = self._link
        lost = link.is_lost()
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
        # New ones: a thread that is not here may have held the old ones at the moment of the fork.
        self._closed = threading.Event()
        self._closed.set()
        self._close_lock = threading.Lock()
        if self._loan is not None:
            self._retire_loan()
        if self._linked:
            self._link.abandon()


_open_transports: weakref.WeakSet[ShmTransport] = weakref.WeakSet()


def _abandon_all() -> None:
    for transport in list(_open_transports):
        transport._abandon()


os.register_at_fork(after_in_child=_abandon_all)
