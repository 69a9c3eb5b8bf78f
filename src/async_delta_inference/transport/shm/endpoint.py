"""`ShmEndpoint`: listens at the rendezvous, shakes hands, and serves one client at a time."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from async_delta_inference.errors import (
    ConfigError,
    InvalidMessageError,
    PeerGoneError,
    ProtocolError,
    SetupRefusedError,
    TransportTimeout,
)
from async_delta_inference.transport.shm import handshake, rendezvous
from async_delta_inference.transport.shm.connection import Connection
from async_delta_inference.transport.shm.layout import SegmentLayout, SizeLimits
from async_delta_inference.transport.shm.segment import Segment, SegmentNames, sweep
from async_delta_inference.transport.shm.session import ObservationHandler, Session

__all__ = ["ShmEndpoint"]

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 20.0
_MAX_CONNECTIONS = 16
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.05


@dataclass(eq=False)
class _Client:
    """A connection that said hello."""

    connection: Connection
    hello: handshake.Hello
    since_s: float = field(default_factory=time.monotonic)
    session: Session | None = None

    def describe(self) -> str:
        return f"process {self.hello.pid}, for {time.monotonic() - self.since_s:.0f} s"


class ShmEndpoint:
    """A server at ``shm://name``.

    A second client is refused while the first one lives, with a message that names it. A client that comes while the
    server is still busy with the last inference of one that has gone waits for its turn.

    Args:
        name: Of the rendezvous.
        handler: Answers; called from one thread of the endpoint's.
        limits: Bounds of what a client may ask for.
        observation_slots: Of a session, at least 4.
        action_slots: Chunks that may wait for the client.
    """

    def __init__(
        self,
        name: str,
        handler: ObservationHandler,
        *,
        limits: SizeLimits | None = None,
        observation_slots: int = 4,
        action_slots: int = 32,
    ) -> None:
        self.uri = f"shm://{name}"
        self._path: Path = rendezvous.socket_path(name)
        self._key = rendezvous.server_key(self._path)
        self._handler = handler
        self._limits = limits or SizeLimits()
        self._slots = (observation_slots, action_slots)
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._seat: _Client | None = None
        self._connections: dict[Connection, threading.Thread] = {}
        self._work: queue.SimpleQueue[_Client | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Listen and serve, in threads of the endpoint's.

        Raises:
            ConfigError: A live server has the name, or the socket cannot be made.
        """
        self._listener = rendezvous.listen(self._path)
        if left := sweep(self._key):
            logger.warning("removed what a killed server left in /dev/shm: %s", ", ".join(left))
        for target in (self._accept_loop, self._work_loop):
            thread = threading.Thread(target=target, name=f"shm-endpoint{target.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()
        _listening.add(self)

    def stop(self) -> None:
        """End the session, stop listening and remove the socket; idempotent. Waits for an inference under way."""
        with self._lock:
            if self._stopping.is_set() or self._listener is None:
                return
            self._stopping.set()
            seat, connections = self._seat, dict(self._connections)
        self._path.unlink(missing_ok=True)
        # Wakes the accept: closing a socket does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        if seat is not None:
            seat.connection.send(handshake.bye("the server was stopped"))
        for connection in connections:
            connection.shut_down()
        self._work.put(None)
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for thread in [*self._threads, *connections.values()]:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._listener.close()

    def pending_timestep(self) -> int | None:
        """Timestep of the observation that waits for the handler, or None; for diagnosis."""
        with self._lock:
            session = self._seat.session if self._seat is not None else None
            return session.pending_timestep() if session is not None else None

    # Accepting, one thread a connection: shakes hands, then sleeps until the client goes.

    def _abandon(self) -> None:
        """In a forked child: let go of the socket, so that it ends with the parent; `stop` must not remove its file."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _accept_loop(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as exc:
                if self._stopping.is_set():
                    return
                logger.error("cannot accept at %s: %s", self._path, exc)
                self._stopping.wait(_POLL_S)
                continue
            self._admit(Connection(sock))

    def _admit(self, connection: Connection) -> None:
        thread = threading.Thread(target=self._attend, args=(connection,), name="shm-endpoint-client", daemon=True)
        with self._lock:
            reason = f"the server has {_MAX_CONNECTIONS} connections already"
            if len(self._connections) < _MAX_CONNECTIONS and not self._stopping.is_set():
                try:
                    thread.start()
                except RuntimeError as exc:
                    reason = f"the server has no thread left for a client: {exc}"
                    logger.error(reason)
                else:
                    self._connections[connection] = thread
                    return
        connection.send(handshake.refused(reason))
        connection.close()

    def _attend(self, connection: Connection) -> None:
        client = None
        try:
            client = self._shake_hands(connection)
            self._watch(client)
        except (SetupRefusedError, InvalidMessageError, ConfigError) as exc:
            logger.warning("refused a client: %s", exc)
            connection.send(handshake.refused(str(exc)))
        except (ProtocolError, TransportTimeout) as exc:
            logger.warning("closed a connection: %s", exc)
            connection.send((handshake.bye if client is not None else handshake.refused)(f"not understood: {exc}"))
        except PeerGoneError as exc:
            logger.debug("a client left: %s", exc)
        except Exception as exc:
            logger.exception("a connection failed")
            connection.send(handshake.refused(f"the server failed: {type(exc).__name__}: {exc}"))
        finally:
            connection.shut_down()
            with self._lock:
                if client is not None and client.session is not None:
                    client.session.end()
                del self._connections[connection]
            connection.close()

    def _shake_hands(self, connection: Connection) -> _Client:
        if connection.peer_uid() != os.geteuid():
            raise SetupRefusedError(
                f"this server belongs to user {os.geteuid()}; user {connection.peer_uid()} may not use it"
            )
        client = _Client(connection, handshake.Hello.from_message(connection.receive(HANDSHAKE_TIMEOUT_S)))
        policy = client.hello.policy
        self._limits.check(policy)
        layout = SegmentLayout.of_policy(policy, *self._slots)
        if layout.segment_bytes > self._limits.max_segment_bytes:
            raise SetupRefusedError(
                f"a session would need {layout.segment_bytes / 1e6:.0f} MB, "
                f"the server allows {self._limits.max_segment_bytes / 1e6:.0f} MB"
            )
        self._take_seat(client)
        try:
            self._attach(client, layout)
        except BaseException:
            self._leave_seat(client)
            raise
        self._work.put(client)
        return client

    def _attach(self, client: _Client, layout: SegmentLayout) -> None:
        names = SegmentNames(self._key, client.hello.session)
        segment = Segment.create(names, layout)
        try:
            client.connection.send(handshake.offer(layout))
            handshake.check_kind(client.connection.receive(HANDSHAKE_TIMEOUT_S), "attached")
        except BaseException:
            segment.close()
            raise
        finally:
            names.unlink()
        client.session = Session(segment, client.hello.policy, self._handler)

    def _watch(self, client: _Client) -> None:
        client.connection.receive(None)
        raise ProtocolError("the client said something in the middle of a session")

    # The seat.

    def _take_seat(self, client: _Client) -> None:
        while True:
            with self._lock:
                if self._stopping.is_set():
                    raise SetupRefusedError("the server is stopping")
                if self._seat is None:
                    self._seat = client
                    return
                if not self._seat.connection.at_end():
                    raise SetupRefusedError(
                        f"the server at {self.uri} serves one client at a time and is busy with "
                        f"{self._seat.describe()}: stop that one, or start another server under another name"
                    )
            # Its last inference is under way; this one is next.
            if client.connection.at_end():
                raise PeerGoneError("the client left before its turn")
            time.sleep(_POLL_S)

    def _leave_seat(self, client: _Client) -> None:
        with self._lock:
            if self._seat is client:
                self._seat = None

    # Inference, one thread for the endpoint's whole life: a policy's thread pools belong to the thread that calls it.

    def _work_loop(self) -> None:
        while (client := self._work.get()) is not None:
            session = client.session
            assert session is not None
            try:
                self._run(client, session)
            except ProtocolError as exc:
                logger.warning("ended the session of %s: %s", client.describe(), exc)
                client.connection.send(handshake.bye(str(exc)))
            except (Exception, SystemExit) as exc:  # This thread serves all clients: it must outlive each.
                logger.exception("ended the session of %s", client.describe())
                client.connection.send(handshake.bye(f"the server failed: {type(exc).__name__}: {exc}"))
            finally:
                client.connection.shut_down()
                with self._lock:
                    client.session = None
                session.close()
                self._leave_seat(client)

    def _run(self, client: _Client, session: Session) -> None:
        if session.over:
            return  # Gone before its turn: loading a policy for it would only keep the next one waiting.
        try:
            self._handler.set_up(client.hello.policy)
        except SetupRefusedError as exc:
            client.connection.send(handshake.refused(str(exc)))
            return
        except (Exception, SystemExit) as exc:
            logger.exception("cannot set up %s", client.hello.policy.pretrained_name_or_path)
            client.connection.send(handshake.refused(f"the policy cannot be set up: {type(exc).__name__}: {exc}"))
            return
        client.connection.send(handshake.READY)
        session.serve()


_listening: weakref.WeakSet[ShmEndpoint] = weakref.WeakSet()


def _abandon_all() -> None:
    for endpoint in list(_listening):
        endpoint._abandon()


os.register_at_fork(after_in_child=_abandon_all)
