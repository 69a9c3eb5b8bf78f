"""`Attachment`: what a connected client holds; and how it gets there."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import posix_ipc

from async_delta_inference.errors import (
    ConfigError,
    PeerGoneError,
    PeerUnreachableError,
    ProtocolError,
    TransportTimeout,
)
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import Connection
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames

__all__ = ["Attachment", "open_connection", "shake_hands", "tidy_after"]


class Attachment:
    """A session as the client holds it: the socket, the segment, and a thread that sleeps until the server goes away.

    The watcher costs the path of a message nothing: it sleeps in a read of the socket. When the socket ends it sets
    `end` and then releases ``actions_ready`` once, which wakes a waiting receiver.

    Args:
        connection: Handshake done.
        segment: Attached.
        server: For messages to humans.
    """

    def __init__(self, connection: Connection, segment: Segment, server: str) -> None:
        self.segment = segment
        self.end: PeerGoneError | ProtocolError | None = None
        """Why the session is over; None while it lasts."""
        self._connection = connection
        self._server = server
        self._watcher = threading.Thread(target=self._watch, name="shm-transport-watch", daemon=True)
        self._watcher.start()

    def is_lost(self) -> bool:
        """Whether the server is gone, noticed by the watcher or not."""
        return self.end is not None or self._connection.at_end()

    def await_wake(self) -> None:
        """After `end` is set: return once the watcher has released its token."""
        self._watcher.join()

    def end_session(self) -> None:
        """Hang up, and wake a waiting receiver. Idempotent."""
        self._connection.shut_down()
        # The garbage collector may finalize a dropped transport in any thread, the transport's own included.
        if threading.current_thread() is not self._watcher:
            self._watcher.join()

    def dispose(self) -> None:
        """Give everything back; nobody may be inside a semaphore in this process. Idempotent."""
        self.end_session()
        self._connection.close()
        self.segment.close()

    def abandon(self) -> None:
        """In a forked child: let go of the socket, so that the server still learns of the parent's end."""
        self.end = PeerGoneError("the session belongs to the process that connected it, not to its fork")
        self._connection.close()

    def _watch(self) -> None:
        try:
            message = self._connection.receive(None)
            self.end = PeerGoneError(f"{self._server} ended the session: {handshake.reason_of(message)}")
        except ProtocolError as exc:
            self.end = ProtocolError(str(exc))
        except PeerGoneError as exc:
            self.end = PeerGoneError(f"{self._server} went away: {exc}")
        # A semaphore that the peer has broken cannot wake anybody: the bound of the wait does.
        with suppress(OSError, posix_ipc.Error):
            self.segment.actions_ready.release()


def open_connection(path: Path, options: TransportOptions) -> Connection:
    """Reach the server, waiting for its start.

    Raises:
        PeerUnreachableError: Nobody is there, or it is another user's.
    """
    connection = Connection(rendezvous.connect(path, options.connect_timeout_s))
    uid = connection.peer_uid()
    if uid != os.geteuid():
        connection.close()
        raise PeerUnreachableError(f"the server at {path} runs as user {uid}, this is user {os.geteuid()}")
    return connection


def shake_hands(
    connection: Connection, path: Path, spec: SessionSpec, options: TransportOptions
) -> tuple[Segment, str, Computation]:
    """Say hello, attach, and wait until the policy is loaded. On an error no name of the session is left.

    Returns:
        The segment, attached, what the server says that it serves, and how that computes.

    Raises:
        PeerUnreachableError: The server does not answer within ``connect_timeout_s``.
        PeerGoneError: It died or was stopped in between.
        SetupRefusedError: It refused; its reason.
        InvalidMessageError: The policy's path or the schema does not fit into a handshake.
        TransportTimeout: The policy was not loaded within ``setup_timeout_s``.
        ProtocolError: It said what it should not.
    """
    names = SegmentNames(rendezvous.server_key(path), token_hex(8))
    deadline_s = time.monotonic() + options.connect_timeout_s
    segment = None
    try:
        connection.send(handshake.Hello(names.session, spec, os.getpid()).to_message())
        try:
            offer = connection.receive(max(0.1, deadline_s - time.monotonic()))
        except TransportTimeout as exc:
            raise PeerUnreachableError(
                f"the server at {path} does not answer within {options.connect_timeout_s:g} s: is it stopped?"
            ) from exc
        segment = Segment.attach(names, handshake.read_offer(offer, spec))
        connection.send(handshake.ATTACHED)
        try:
            description, computation = handshake.read_ready(connection.receive(options.setup_timeout_s))
        except TransportTimeout as exc:
            raise TransportTimeout(
                f"the server at {path} did not load the policy within {options.setup_timeout_s:g} s"
            ) from exc
        return segment, description, computation
    except BaseException:
        # The server does this, too; whoever is left alive does it.
        connection.shut_down()
        names.unlink()
        if segment is not None:
            segment.close()
        raise


def tidy_after(path: Path) -> None:
    """Remove what a killed server left. Somebody else's business is left alone."""
    try:
        rendezvous.remove_if_stale(path)
    except (OSError, ConfigError):
        return  # The next server at this name removes it.
