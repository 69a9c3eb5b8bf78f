"""`WorkerProcess`: a worker as whoever hands out the episodes sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.run.forking import Forker
from async_delta_inference.client.run.worker import Connect, RunEpisode, WorkerSetup, work

__all__ = ["WorkerProcess"]

_END_TIMEOUT_S = 10.0


class WorkerProcess:
    """Started by the constructor.

    Args:
        forker: Starts it.
        setup: What it is told.
        timeout_s: Seconds until its environments must be there.
    """

    def __init__(self, forker: Forker, setup: WorkerSetup, timeout_s: float) -> None:
        self.setup = setup
        self.process = forker.start(work, setup)
        self.spec: EpisodeSpec | None = None
        """What it is at."""
        self.built: tuple[str, int] | None = None
        """The task whose simulator it has."""
        self.described = False
        self.ready = False
        """Whether it has a session."""
        self.connecting = False
        self._timeout_s = timeout_s
        self._heard_s = time.monotonic()

    @property
    def index(self) -> int:
        """Which worker, from 0."""
        return self.setup.index

    def connect(self, command: Connect, timeout_s: float) -> None:
        """Have it open a session within so many seconds."""
        self.ready, self.connecting = False, True
        self._send(command, timeout_s)

    def run(self, spec: EpisodeSpec, timeout_s: float) -> None:
        """Have it run an episode, with a sign of life in every so many seconds."""
        self.spec, self.built = spec, (spec.task_group, spec.task_id)
        self._send(RunEpisode(spec), timeout_s)

    def receive(self) -> Any:
        """What it says; None when it has nothing more to say."""
        try:
            message = self.process.connection.recv()
        except (EOFError, OSError):
            return None
        self._heard_s = time.monotonic()
        return message

    def overdue_s(self) -> float:
        """Seconds since it should have been heard of; negative: until then. Idle it is never overdue."""
        if self.described and self.spec is None and not self.connecting:
            return -_END_TIMEOUT_S
        return time.monotonic() - self._heard_s - self._timeout_s

    @property
    def timeout_s(self) -> float:
        """How long it may be silent."""
        return self._timeout_s

    def end(self, patience_s: Callable[[], float]) -> str:
        """End it, in order where it can, and say how it ended.

        Args:
            patience_s: How long it may take.
        """
        with suppress(OSError):
            self.process.connection.send(None)
        if not self.process.wait(patience_s()):
            self.process.kill()
            self.process.wait(_END_TIMEOUT_S)
        return self.process.reap()

    def _send(self, command: object, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._heard_s = time.monotonic()
        with suppress(OSError):  # It is dead; its end is heard of.
            self.process.connection.send(command)
