"""`RayWorker`: a worker that is an actor, somewhere in the cluster."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from async_delta_inference.client.run.on_ray.actors import Taken
from async_delta_inference.client.run.worker import WorkerSetup
from async_delta_inference.client.run.worker_handle import WorkerHandle
from async_delta_inference.errors import AsyncDeltaError

__all__ = ["RayWorker", "in_short"]

_PATIENCE_S = 1.0
_KILL_TIMEOUT_S = 5.0


class RayWorker(WorkerHandle):
    """Begun by the constructor; where it is placed, and when, is Ray's to say.

    Args:
        actor: A `WorkerActor`, made or about to be.
        setup: What it is told.
        timeout_s: Seconds from then until its environments must be there.
    """

    def __init__(self, actor: Any, setup: WorkerSetup, timeout_s: float) -> None:
        super().__init__(setup.index, timeout_s)
        self.node: str | None = None
        """Ray's name for where it is, once it is there."""
        self._actor = actor
        self._inbox: deque[Any] = deque()
        self._ended = ""
        self._begun: Any = actor.begin.remote(setup)
        self._taken: Any = actor.take.remote(_PATIENCE_S)

    @property
    def waited_for(self) -> list[Any]:
        """References that are there once something is to be collected."""
        return [] if self._ended else [ref for ref in (self._begun, self._taken) if ref is not None]

    def collect(self, ready: set[Any]) -> bool:
        """Take what came; returns whether that is worth a look.

        Args:
            ready: References that are there.
        """
        try:
            if self._begun in ready:
                ray.get(self._begun)
                self._begun = None
            if self._taken in ready:
                self._note(ray.get(self._taken))
        except RayError as exc:
            self._ended = in_short(exc)
        return bool(self._inbox or self._ended)

    def messages(self) -> Iterator[Any]:
        """See `WorkerHandle`."""
        while self._inbox:
            yield self._inbox.popleft()

    @property
    def has_ended(self) -> bool:
        """See `WorkerHandle`."""
        return bool(self._ended) and not self._inbox

    @property
    def lateness(self) -> str:
        """See `WorkerHandle`."""
        if self.node is None:
            return f"found no free CPU in the cluster for {self.timeout_s:g} s"
        return super().lateness

    def kill(self) -> None:
        """See `WorkerHandle`."""
        ray.kill(self._actor)
        self._await_end(_KILL_TIMEOUT_S)

    def reap(self) -> str:
        """See `WorkerHandle`."""
        ray.kill(self._actor)
        return f"its actor ended: {self._ended or 'it was killed'}"

    def begin_to_end(self) -> None:
        """See `WorkerHandle`."""
        if self.spec is not None or self.node is None:
            ray.kill(self._actor)
        else:
            self._send(None)

    def end(self, patience_s: float) -> None:
        """See `WorkerHandle`."""
        self._await_end(patience_s)
        self.kill()

    def _send(self, command: object) -> None:
        with suppress(RayActorError):
            self._actor.tell.remote(command)

    def _note(self, taken: Taken) -> None:
        if self.node is None:
            self.node = taken.node
            self.heard_s = time.monotonic()
        if taken.messages:
            self.heard_s = time.monotonic()
            # Copied: what lies in Ray's store would fill it, for as long as anybody has the result.
            self._inbox += deepcopy(taken.messages)
        self._ended = taken.ended
        self._taken = self._actor.take.remote(_PATIENCE_S)

    def _await_end(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self._ended and (left_s := deadline_s - time.monotonic()) > 0:
            ready, _ = ray.wait([self._taken], timeout=left_s)
            self.collect(set(ready))


def in_short(exc: BaseException) -> str:
    """What Ray says of an end, without its advice."""
    cause = getattr(exc, "cause", None) or exc
    text = " ".join(str(cause).split())
    if isinstance(cause, AsyncDeltaError):
        return text
    detail = re.search(r"(?:Worker exit detail|The actor is dead because|because): (.*)", text)
    text = detail.group(1) if detail else text
    return text.split(". ")[0] or type(cause).__name__
