"""`WorkerHandle`: a worker as whoever hands out the episodes sees it, wherever it runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.run.worker import Connect, RunEpisode

__all__ = ["WorkerHandle"]

_IDLE_S = -10.0


class WorkerHandle(ABC):
    """Its worker was started when it is made.

    Args:
        index: Which worker, from 0.
        timeout_s: Seconds until its environments must be there.
    """

    def __init__(self, index: int, timeout_s: float) -> None:
        self.index = index
        self.spec: EpisodeSpec | None = None
        """What it is at."""
        self.built: tuple[str, int] | None = None
        """The task whose simulator it has."""
        self.described = False
        self.ready = False
        """Whether it has a session."""
        self.connecting = False
        self.timeout_s = timeout_s
        """How long it may be silent."""
        self.heard_s = time.monotonic()
        """When it was heard of last."""

    def connect(self, command: Connect, timeout_s: float) -> None:
        """Have it open a session within so many seconds."""
        self.ready, self.connecting = False, True
        self._command(command, timeout_s)

    def run(self, spec: EpisodeSpec, timeout_s: float) -> None:
        """Have it run an episode, with a sign of life in every so many seconds."""
        self.spec, self.built = spec, (spec.task_group, spec.task_id)
        self._command(RunEpisode(spec), timeout_s)

    def overdue_s(self) -> float:
        """Seconds since it should have been heard of; negative: until then. Idle it is never overdue."""
        if self.described and self.spec is None and not self.connecting:
            return _IDLE_S
        return time.monotonic() - self.heard_s - self.timeout_s

    @property
    def lateness(self) -> str:
        """What to say of it when it is overdue."""
        return f"{'took no step' if self.spec is not None else 'did not get ready'} for {self.timeout_s:g} s"

    @abstractmethod
    def messages(self) -> Iterator[Any]:
        """What it has said; waits for nothing."""

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether it is gone, and has said all that it had to say."""

    @abstractmethod
    def kill(self) -> None:
        """End it whatever it does, and wait a moment for that."""

    @abstractmethod
    def reap(self) -> str:
        """Once it has ended: how, in words; nothing of it is left."""

    @abstractmethod
    def begin_to_end(self) -> None:
        """Ask it to end in order; one that is in the middle of an episode, which nobody waits for, is killed."""

    @abstractmethod
    def end(self, patience_s: float) -> None:
        """Wait for it so many seconds, and kill it then."""

    @abstractmethod
    def _send(self, command: object) -> None:
        """Tell it; nothing happens where it is dead, since its end is heard of."""

    def _command(self, command: object, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.heard_s = time.monotonic()
        self._send(command)
