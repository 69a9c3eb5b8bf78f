"""`Lobby`: which sessions have a seat, who came and who left; the part of a host that listeners' threads reach."""

from __future__ import annotations

import threading
from collections import deque

from async_delta_inference.errors import SetupRefusedError
from async_delta_inference.transport.inbox import ServedSession
from async_delta_inference.transport.policy import PolicyNeeds

__all__ = ["Lobby"]

_MOST_NAMED = 4
"""Clients that a refusal names; the others it counts."""


class Lobby:
    """Any thread may call any method. A session's seat is free as soon as it departs, whatever still uses the session.

    Args:
        max_sessions: Seats.
    """

    def __init__(self, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self._lock = threading.Lock()
        self._seated: dict[ServedSession, PolicyNeeds] = {}
        self._arrived: deque[ServedSession] = deque()
        self._departed: deque[ServedSession] = deque()
        self._is_shut = False
        self.has_traffic = False
        """Whether somebody arrived or departed since `take_departed`; plain, for it is looked at with every message."""

    def reserve(self, session: ServedSession, needs: PolicyNeeds) -> None:
        """Keep a seat for a session until it departs.

        Raises:
            SetupRefusedError: All seats are taken, or the lobby is shut.
        """
        with self._lock:
            if self._is_shut:
                raise SetupRefusedError("the server is stopping")
            if len(self._seated) >= self.max_sessions:
                self._see_off_who_left()
            if len(self._seated) >= self.max_sessions:
                raise SetupRefusedError(self._why_full())
            self._seated[session] = needs

    def arrive(self, session: ServedSession) -> None:
        """A session that has a seat wants its policy; one that departed meanwhile does not."""
        with self._lock:
            if session in self._seated:
                self._arrived.append(session)
                self.has_traffic = True

    def depart(self, session: ServedSession) -> None:
        """Free its seat, and have it closed; idempotent."""
        with self._lock:
            self._see_off(session)

    def shut(self) -> list[ServedSession]:
        """Let nobody in any more; the sessions that have a seat."""
        with self._lock:
            self._is_shut = True
            return list(self._seated)

    def clear(self) -> None:
        """Have everybody depart, and forget who arrived."""
        with self._lock:
            self._arrived.clear()
            for session in list(self._seated):
                self._see_off(session)

    def sessions(self) -> list[ServedSession]:
        """Those that have a seat."""
        with self._lock:
            return list(self._seated)

    def take_departed(self) -> list[ServedSession]:
        """Those to be closed."""
        with self._lock:
            self.has_traffic = False
            if self._arrived and not self._departed:
                # Somebody whose connection has ended unnoticed must not keep another one's policy out.
                self._see_off_who_left()
            departed = list(self._departed)
            self._departed.clear()
        return departed

    def take_arrived(self) -> tuple[ServedSession, PolicyNeeds] | None:
        """The next session to be opened, with what the policy said of it; None when there is none."""
        with self._lock:
            while self._arrived:
                session = self._arrived.popleft()
                if session in self._seated:
                    return session, self._seated[session]
        return None

    def _see_off(self, session: ServedSession) -> None:
        if self._seated.pop(session, None) is not None:
            self._departed.append(session)
            self.has_traffic = True

    def _see_off_who_left(self) -> None:
        for session in [session for session in self._seated if session.has_left()]:
            self._see_off(session)

    def _why_full(self) -> str:
        labels = sorted({session.label for session in self._seated})
        named = ", ".join(labels[:_MOST_NAMED])
        if len(labels) > _MOST_NAMED:
            named += f" and {len(labels) - _MOST_NAMED} more"
        return (
            f"the server has {len(self._seated)} sessions, as many as it may ({named}): wait for one to end, or start "
            f"the server with --max_sessions={self.max_sessions + 1} or more"
        )
