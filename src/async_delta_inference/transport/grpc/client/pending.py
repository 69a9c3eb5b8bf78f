"""Which observations are waiting, under way and unanswered: bookkeeping without I/O or threads.

PolicyServer says the same nothing for "no observation yet" and "inference failed". The difference is in what was sent:
an observation that must be answered and was acknowledged before ``GetActions`` began is in the server's queue, so an
empty reply to that call means that inference failed on it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outgoing", "PendingObservations"]


@dataclass(slots=True, eq=False)
class Outgoing:
    """An encoded observation on its way."""

    timestep: int
    must_go: bool
    data: bytes
    episode: int = 0
    acknowledged: bool = False


class PendingObservations:
    """Not thread-safe: the transport guards it with its condition."""

    def __init__(self) -> None:
        self._waiting: Outgoing | None = None
        self._unanswered: list[Outgoing] = []

    def post(self, outgoing: Outgoing) -> None:
        """A new observation; one that still waits to be sent is replaced, as it would be in the server's queue."""
        self._waiting = outgoing

    @property
    def has_waiting(self) -> bool:
        """Whether an observation waits to be sent."""
        return self._waiting is not None

    def begin_send(self) -> Outgoing:
        """Take the waiting observation to send it."""
        assert self._waiting is not None
        outgoing, self._waiting = self._waiting, None
        self._unanswered.append(outgoing)
        return outgoing

    def acknowledge(self, outgoing: Outgoing) -> None:
        """The server has it."""
        outgoing.acknowledged = True

    def newest_acknowledged(self) -> Outgoing | None:
        """The observation that a ``GetActions`` starting now should answer, or None when nothing is owed."""
        return next((o for o in reversed(self._unanswered) if o.acknowledged), None)

    def answered(self, timestep: int) -> None:
        """A chunk came: its observation is answered, and older ones were replaced by it in the server's queue."""
        self._unanswered = [o for o in self._unanswered if o.timestep > timestep]

    def answered_empty(self, due: Outgoing) -> bool:
        """An empty reply to a call that began when ``due`` was owed.

        Returns:
            True when PolicyServer's inference failed on it; False when the server may have filtered it.
        """
        if due not in self._unanswered:
            return False
        self._unanswered = self._unanswered[self._unanswered.index(due) + 1 :]
        return due.must_go

    def drop(self, outgoing: Outgoing) -> None:
        """Sending it failed for good."""
        if outgoing in self._unanswered:
            self._unanswered.remove(outgoing)

    def restart(self) -> bool:
        """The server is a new one: what it owes is owed no more, and the newest unanswered observation waits again.

        Returns:
            Whether the old server was lost with something that it had to answer.
        """
        owed = bool(self._unanswered)
        if self._waiting is None and self._unanswered:
            self._waiting = self._unanswered[-1]
            self._waiting.acknowledged = False
        self._unanswered.clear()
        return owed
