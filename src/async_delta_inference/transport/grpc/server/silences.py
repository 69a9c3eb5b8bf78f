"""`Silences`: calls whose client has not said yet all that it wants to say.

gRPC for Python gives every call a thread from its first byte on, and lets it wait for the next one for ever. So whoever
reads says so here: who is silent for too long is cut off, and where many are, the one that has been for longest makes
way for one who may speak.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

__all__ = ["Silences"]

logger = logging.getLogger(__name__)


class Silences:
    """The calls that are being read. For any thread.

    Args:
        most: So many at once.
        timeout_s: For each of them.
    """

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._condition = threading.Condition()
        self._deadlines_s: dict[grpc.ServicerContext, float] = {}
        """By call, the oldest first."""
        self._closed = False
        self._is_asleep = False
        """Whether the watcher waits for a first call; else it wakes by itself."""
        self._watcher = threading.Thread(target=self._watch, name="grpc-listener-silences", daemon=True)
        self._watcher.start()

    @contextmanager
    def bounded(self, context: grpc.ServicerContext) -> Iterator[None]:
        """While the call is being read. Reading raises ``grpc.RpcError`` when it is cut off."""
        with self._condition:
            if len(self._deadlines_s) >= self._most:
                self._cut_off(next(iter(self._deadlines_s)), f"{self._most} others are being read")
            self._deadlines_s[context] = time.monotonic() + self._timeout_s
            if self._is_asleep:
                self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._deadlines_s.pop(context, None)

    def close(self) -> None:
        """End the thread that watches."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._watcher.join()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                oldest = next(iter(self._deadlines_s.items()), None)
                if oldest is None:
                    self._is_asleep = True
                    self._condition.wait()
                    self._is_asleep = False
                    continue
                context, deadline_s = oldest
                remaining_s = deadline_s - time.monotonic()
                if remaining_s > 0:
                    self._condition.wait(remaining_s)
                else:
                    self._cut_off(context, f"its message was not whole within {self._timeout_s:g} s")

    def _cut_off(self, context: grpc.ServicerContext, why: str) -> None:
        """With the condition held."""
        del self._deadlines_s[context]
        logger.warning("cut off a call of the client at %s: %s", context.peer(), why)
        context.cancel()
