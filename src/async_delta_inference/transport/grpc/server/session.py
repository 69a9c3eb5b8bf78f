"""`GrpcSession`: one client's session, and who it belongs to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from async_delta_inference.transport.grpc.server.connections import TcpConnections
from async_delta_inference.transport.grpc.wire import longest_observation
from async_delta_inference.transport.mailbox import MailboxSession, Reply
from async_delta_inference.transport.messages import Observation, SessionSpec

__all__ = ["MAX_CALLS", "GrpcSession", "SessionTable"]

MAX_CALLS = 4
"""Calls of one client at a time, each in a thread: it has one that waits for a chunk and one that sends."""

_LONGEST_SILENCE_S = 60.0
"""After this a client is gone whose connection cannot be looked up, and that has no call under way."""
_LONGEST_SILENCE_OF_OURS_S = 30.0
"""The same of a client that always has one: it has none only if it died, or was stopped, between two."""


class GrpcSession(MailboxSession):
    """The observations and replies of one client of LeRobot's protocol.

    Args:
        spec: What the client asked for.
        ring: Wakes the inference loop.
        peer: The client's end of its connection, as gRPC names it.
        connections: Tells whether that is open.
        is_ours: Whether it is a client of this project, which always has a call under way.
    """

    def __init__(
        self,
        spec: SessionSpec,
        ring: Callable[[], None],
        peer: str,
        connections: TcpConnections,
        *,
        is_ours: bool = False,
    ) -> None:
        super().__init__(spec, f"the client at {peer}", ring)
        self._longest_silence_s = _LONGEST_SILENCE_OF_OURS_S if is_ours else _LONGEST_SILENCE_S
        self.most_bytes = longest_observation(spec.features)
        self._peer = peer
        self._connections = connections
        self._calls_under_way = 0
        self._heard_s = time.monotonic()
        self._newest_taken = -1

    # Called by the service, from the threads of calls.

    def call_begins(self, peer: str) -> bool:
        """A call of the client's began; False when it has too many already."""
        with self._condition:
            self._peer = peer
            if self._calls_under_way >= MAX_CALLS:
                return False
            self._calls_under_way += 1
            return True

    def call_ends(self) -> None:
        """It ended, however."""
        with self._condition:
            self._calls_under_way -= 1
            self._heard_s = time.monotonic()

    def wake(self) -> None:
        """Have `wait_for_reply` look whether anybody still wants the reply."""
        with self._condition:
            self._condition.notify_all()

    def post(self, observation: Observation) -> None:
        """See `MailboxSession`; what PolicyServer would leave out, because it was answered, is left out."""
        if observation.must_go or observation.timestep != self._newest_taken:
            super().post(observation)

    def wait_for_reply(self, patience_s: float, is_wanted: Callable[[], bool]) -> Reply | None:
        """The next reply; None when nothing is owed and none came for a while, or nobody wants it any more.

        Args:
            patience_s: The while.
            is_wanted: Whether the call that asks goes on; a reply is not taken for one that does not.

        Raises:
            PeerGoneError: The session is over.
        """
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._replies or self._end is not None or not is_wanted(), patience_s)
                if not is_wanted():
                    return None
                reply = self.next_reply(0.0)
                if reply is not None or not self.owes_reply():
                    return reply

    # Called by the host.

    def take(self) -> Observation | None:
        """See `ServedSession`."""
        observation = super().take()
        if observation is not None:
            self._newest_taken = observation.timestep
        return observation

    def has_left(self) -> bool:
        """See `ServedSession`."""
        is_open = self._connections.is_open(self._peer)
        if is_open is None:
            return self._calls_under_way == 0 and time.monotonic() - self._heard_s > self._longest_silence_s
        return not is_open

    @property
    def end_reason(self) -> str | None:
        """Why it is over; None while it is not."""
        return self._end


class SessionTable:
    """Sessions by what tells their clients apart. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, GrpcSession] = {}

    def get(self, key: str) -> GrpcSession | None:
        """The session of a client, be it over; None when it has none."""
        with self._lock:
            return self._sessions.get(key)

    def put(self, key: str, session: GrpcSession) -> None:
        """Remember a client's session, and forget those that are over and whose clients cannot ask why."""
        with self._lock:
            stale = [other for other, old in self._sessions.items() if old.end_reason is not None and old.has_left()]
            for other in stale:
                del self._sessions[other]
            self._sessions[key] = session

    def remove(self, key: str) -> GrpcSession | None:
        """Forget a client's session, and return it."""
        with self._lock:
            return self._sessions.pop(key, None)

    def discard(self, session: GrpcSession) -> None:
        """Forget a session, unless its client has another one already."""
        with self._lock:
            for key, known in list(self._sessions.items()):
                if known is session:
                    del self._sessions[key]

    def all(self) -> list[GrpcSession]:
        """All of them."""
        with self._lock:
            return list(self._sessions.values())
