"""`WorkerProcess`: a worker in a process of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from async_delta_inference.client.run.forking import Forker
from async_delta_inference.client.run.worker import WorkerSetup, work
from async_delta_inference.client.run.worker_handle import WorkerHandle

__all__ = ["WorkerProcess"]

_END_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 5.0


class WorkerProcess(WorkerHandle):
    """Started by the constructor.

    Args:
        forker: Starts it.
        setup: What it is told.
        timeout_s: Seconds until its environments must be there.
    """

    def __init__(self, forker: Forker, setup: WorkerSetup, timeout_s: float) -> None:
        super().__init__(setup.index, timeout_s)
        self._process = forker.start(work, setup)

    @property
    def waited_for(self) -> tuple[Any, Any]:
        """Readable once it has said something, or has ended."""
        return self._process.connection, self._process.handle

    def messages(self) -> Iterator[Any]:
        """See `WorkerHandle`."""
        while self._process.connection.poll(0.0):
            try:
                message = self._process.connection.recv()
            except (EOFError, OSError):
                return
            self.heard_s = time.monotonic()
            yield message

    @property
    def has_ended(self) -> bool:
        """See `WorkerHandle`."""
        return self._process.wait(0.0)

    def kill(self) -> None:
        """See `WorkerHandle`."""
        self._process.kill()
        self._process.wait(_KILL_TIMEOUT_S)

    def reap(self) -> str:
        """See `WorkerHandle`."""
        return f"its process {self._process.reap()}"

    def begin_to_end(self) -> None:
        """See `WorkerHandle`."""
        if self.spec is not None:
            self._process.kill()
        self._send(None)

    def end(self, patience_s: float) -> None:
        """See `WorkerHandle`."""
        if not self._process.wait(patience_s):
            self._process.kill()
            self._process.wait(_END_TIMEOUT_S)
        self._process.reap()

    def _send(self, command: object) -> None:
        with suppress(OSError):
            self._process.connection.send(command)
