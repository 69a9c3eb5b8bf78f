"""Every deadline of a transport: what a caller chooses, and the one of an answer, which all backends share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from async_delta_inference.errors import InvalidMessageError
from async_delta_inference.transport.link_options import LinkOptions

__all__ = ["LONGEST_TIMEOUT_S", "AnswerDeadline", "TransportOptions"]

LONGEST_TIMEOUT_S = 1e8
"""Three years: above any wait, below what the system's own timers take."""


@dataclass(frozen=True)
class TransportOptions:
    """Deadlines that every backend keeps, in seconds, each at most `LONGEST_TIMEOUT_S`; and how it trusts its server.

    Args:
        connect_timeout_s: For the server to be reached and to answer the handshake.
        setup_timeout_s: For the server to load the policy.
        inference_timeout_s: For one observation to be answered.
        reconnect_timeout_s: For a server that went away to come back; 0 gives up at once.
        link: Dialect, token and certificates.

    Raises:
        InvalidMessageError: One is out of its range.
    """

    connect_timeout_s: float = 20.0
    setup_timeout_s: float = 300.0
    inference_timeout_s: float = 120.0
    reconnect_timeout_s: float = 30.0
    link: LinkOptions = field(default_factory=LinkOptions)

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "setup_timeout_s", "inference_timeout_s", "reconnect_timeout_s"):
            value_s = getattr(self, name)
            may_be_zero = name == "reconnect_timeout_s"
            if not (0 < value_s <= LONGEST_TIMEOUT_S or (may_be_zero and value_s == 0)):
                least = "0 or more" if may_be_zero else "positive"
                raise InvalidMessageError(
                    f"{name} must be {least} and at most {LONGEST_TIMEOUT_S:g} seconds, got {value_s:g}"
                )


class AnswerDeadline:
    """How long an observation that must be answered has been waited for.

    The clock starts with the first wait that is in vain, and anew with every answer to something newer than what was
    answered before: an old answer again and again is no progress. The sending thread writes `due_timestep`, the
    receiving thread everything else: there is no lock.

    Args:
        timeout_s: For an answer.
    """

    def __init__(self, timeout_s: float) -> None:
        self.due_timestep = -1
        """The newest observation that must be answered."""
        self.answered_timestep = -1
        """Newest that was answered, in whichever way."""
        self._timeout_s = timeout_s
        self._waiting_since_s: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether an answer is owed."""
        return self.due_timestep > self.answered_timestep

    def note_answer(self, timestep: int) -> None:
        """An observation was answered."""
        if timestep > self.answered_timestep:
            self.answered_timestep = timestep
            self._waiting_since_s = None

    def restart(self) -> None:
        """Whoever owes the answer has the whole time again."""
        self._waiting_since_s = None

    def overdue_timestep(self, waited_s: float) -> int | None:
        """The timestep whose answer is overdue, which is said once; None when there is still time.

        Args:
            waited_s: How long a wait has just lasted, in vain.
        """
        now_s = time.monotonic()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s - waited_s
        if now_s - self._waiting_since_s < self._timeout_s:
            return None
        overdue = self.due_timestep
        self.note_answer(overdue)
        return overdue
