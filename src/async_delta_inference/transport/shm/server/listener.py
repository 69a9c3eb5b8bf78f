"""`ShmListener`: listens at the rendezvous and shakes hands; the inference loop does the rest."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from secrets import token_hex
from typing import ClassVar

from async_delta_inference.errors import (
    ConfigError,
    InvalidMessageError,
    PeerGoneError,
    ProtocolError,
    SetupRefusedError,
    TransportTimeout,
)
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.server import Listener, Reach
from async_delta_inference.transport.shm.server.bell import SemaphoreBell
from async_delta_inference.transport.shm.server.session import ShmSession
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import Connection
from async_delta_inference.transport.shm.shared.layout import SegmentLayout, SizeLimits
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames, sweep

__all__ = ["ShmListener"]

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
"""Within which a connection must say what it wants: a client does so at once."""
HANDSHAKE_TIMEOUT_S = 20.0
"""Within which it must attach to its segment, whose pages it touches first."""
_SPARE_CONNECTIONS = 16
"""For clients that are to hear why they are not served."""
_STOP_TIMEOUT_S = 30.0
_RETRY_S = 0.05


class ShmListener(Listener):
    """A server at ``shm://name``: each client gets a segment and semaphores of its own.

    Args:
        address: Name of the rendezvous.
        host: Where the sessions go.
        limits: Bounds of what a client may ask for.
        observation_slots: Of a session, at least 4.
        action_slots: Chunks that may wait for a client.

    Raises:
        ConfigError: Not a name, or the folder of the sockets cannot be used.
    """

    reach: ClassVar[Reach] = "host"

    def __init__(
        self,
        address: str,
        host: SessionHost,
        *,
        limits: SizeLimits | None = None,
        observation_slots: int = 4,
        action_slots: int = 32,
    ) -> None:
        super().__init__(address, host)
        self._path: Path = rendezvous.socket_path(address)
        self._key = rendezvous.server_key(self._path)
        self._limits = limits or SizeLimits()
        self._slots = (observation_slots, action_slots)
        self._socket: socket.socket | None = None
        self._bell: SemaphoreBell | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._silent: dict[Connection, None] = {}
        """The connections that have said nothing yet, the oldest first."""
        self._accepting = threading.Thread(target=self._accept_loop, name="shm-listener", daemon=True)

    @classmethod
    def default_address(cls) -> str:
        """See `Listener`."""
        return "async-delta"

    @classmethod
    def unused_address(cls) -> str:
        """See `Listener`."""
        return f"embedded-{token_hex(6)}"

    @classmethod
    def remove_what_is_left(cls, address: str) -> None:
        """See `Listener`."""
        rendezvous.remove_if_stale(rendezvous.socket_path(address))

    @property
    def uri(self) -> str:
        """See `Listener`."""
        return f"shm://{self.address}"

    def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: A live server has the name, or the socket or the bell cannot be made.
        """
        self._socket = rendezvous.listen(self._path)
        if left := sweep(self._key):
            logger.warning("removed what a killed server left in /dev/shm: %s", ", ".join(left))
        try:
            self._hang_bell()
        except BaseException:
            self._path.unlink(missing_ok=True)
            self._socket.close()
            self._socket = None
            raise
        self._accepting.start()
        _listening.add(self)

    def _hang_bell(self) -> None:
        """One bell for all that the inference loop waits for, whichever socket its clients came through."""
        bell = self.host.bell
        if isinstance(bell, SemaphoreBell):
            bell.hang_at(self._key)
        else:
            bell = SemaphoreBell(self._key)
            self.host.hang_bell(bell)
        self._bell = bell

    def stop(self) -> None:
        """See `Listener`."""
        with self._lock:
            if self._stopping.is_set() or self._socket is None:
                return
            self._stopping.set()
            connections = dict(self._connections)
        self._path.unlink(missing_ok=True)
        # Wakes the accept: closing a socket does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.shut_down()
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for thread in [self._accepting, *connections.values()]:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._socket.close()
        if self._bell is not None:
            self._bell.take_down(self._key)
            if not self.host.is_running:
                self._bell.close()

    def _abandon(self) -> None:
        """In a forked child: let go of the socket, so that it ends with the parent; `stop` must not remove its file."""
        listening, self._socket = self._socket, None
        if listening is not None:
            listening.close()

    # One thread a connection: it shakes hands, then sleeps until the client goes.

    def _accept_loop(self) -> None:
        assert self._socket is not None
        while not self._stopping.is_set():
            try:
                sock, _ = self._socket.accept()
            except OSError as exc:
                if self._stopping.is_set():
                    return
                logger.error("cannot accept at %s: %s", self._path, str(exc))
                self._stopping.wait(_RETRY_S)
                continue
            self._attend_in_thread(Connection(sock))

    def _attend_in_thread(self, connection: Connection) -> None:
        thread = threading.Thread(target=self._attend, args=(connection,), name="shm-listener-client", daemon=True)
        with self._lock:
            reason = f"the server has {len(self._connections)} connections already"
            if self._has_room() and not self._stopping.is_set():
                try:
                    thread.start()
                except RuntimeError as exc:
                    reason = f"the server has no thread left for a client: {exc}"
                    logger.error(reason)
                else:
                    self._connections[connection] = thread
                    self._silent[connection] = None
                    return
        connection.send(handshake.refused(reason))
        connection.close()

    def _has_room(self) -> bool:
        """Whether there is room for another connection; who says nothing makes way for one who may."""
        if len(self._connections) < self.host.max_sessions + _SPARE_CONNECTIONS:
            return True
        for silent in self._silent:
            del self._silent[silent]
            silent.shut_down()
            return True
        return False

    def _attend(self, connection: Connection) -> None:
        session = None
        try:
            session = self._shake_hands(connection)
            connection.receive(None)
            raise ProtocolError("the client said something in the middle of a session")
        except (SetupRefusedError, InvalidMessageError, ConfigError) as exc:
            logger.warning("refused a client: %s", str(exc))
            connection.send(handshake.refused(str(exc)))
        except (ProtocolError, TransportTimeout) as exc:
            logger.warning("closed a connection: %s", str(exc))
            connection.send((handshake.bye if session is not None else handshake.refused)(f"not understood: {exc}"))
        except PeerGoneError as exc:
            # As text: whoever keeps the record would keep the traceback, and with it the session's memory.
            logger.debug("a client left: %s", str(exc))
        except Exception as exc:
            logger.exception("a connection failed")
            connection.send(handshake.refused(f"the server failed: {type(exc).__name__}: {exc}"))
        finally:
            connection.shut_down()
            if session is not None:
                self.host.leave(session)
            with self._lock:
                del self._connections[connection]
                self._silent.pop(connection, None)
            connection.close()

    def _shake_hands(self, connection: Connection) -> ShmSession:
        if connection.peer_uid() != os.geteuid():
            raise SetupRefusedError(
                f"this server belongs to user {os.geteuid()}; user {connection.peer_uid()} may not use it"
            )
        message = connection.receive(HELLO_TIMEOUT_S)
        with self._lock:
            self._silent.pop(connection, None)
        hello = handshake.Hello.from_message(message)
        self._limits.check(hello.spec)
        needs = self.host.describe(hello.spec, carries_history=True, carries_prefix=True)
        layout = SegmentLayout.of_session(hello.spec, *self._slots, needs.n_obs_steps, needs.prefix)
        if layout.segment_bytes > self._limits.max_segment_bytes:
            raise SetupRefusedError(
                f"a session would need {layout.segment_bytes / 1e6:.0f} MB, "
                f"the server allows {self._limits.max_segment_bytes / 1e6:.0f} MB"
            )
        session = ShmSession(hello.spec, f"process {hello.pid}", connection)
        self.host.reserve(session, needs)
        try:
            session.attach(self._share_segment(connection, SegmentNames(self._key, hello.session), layout))
        except BaseException:
            self.host.leave(session)
            raise
        self.host.enter(session)
        return session

    def _share_segment(self, connection: Connection, names: SegmentNames, layout: SegmentLayout) -> Segment:
        segment = Segment.create(names, layout)
        try:
            connection.send(handshake.offer(layout))
            handshake.check_kind(connection.receive(HANDSHAKE_TIMEOUT_S), "attached")
        except BaseException:
            segment.close()
            raise
        finally:
            names.unlink()
        return segment


_listening: weakref.WeakSet[ShmListener] = weakref.WeakSet()


def _abandon_all() -> None:
    for listener in list(_listening):
        listener._abandon()


os.register_at_fork(after_in_child=_abandon_all)
