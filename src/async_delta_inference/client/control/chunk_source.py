"""Where the control loop gets its chunks from: the transport itself, or a thread that receives for it."""

from __future__ import annotations

import threading
from collections import deque

from async_delta_inference.errors import AsyncDeltaError
from async_delta_inference.transport import ActionChunk, Transport

__all__ = ["ChunkSource"]

_SLICE_S = 0.2
"""How long one wait takes before it looks whether it should end."""


class ChunkSource:
    """Whoever holds the receiving role calls the transport; there is no hand-over between threads unless a thread of
    the user's took the role with `receive_until_stopped`.

    Args:
        transport: Connected.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._role = threading.Lock()
        self._condition = threading.Condition()
        self._received: deque[ActionChunk | AsyncDeltaError] = deque()
        self._stopped = threading.Event()

    def receive_until_stopped(self) -> None:
        """Receive in this thread until `stop`. An error ends it and is raised from `next_chunk`."""
        while not self._stopped.is_set():
            with self._role:
                try:
                    received: ActionChunk | AsyncDeltaError | None = self._transport.receive_actions(_SLICE_S)
                except AsyncDeltaError as exc:
                    received = exc
                # Before the role is free: whoever takes it next must not overtake this chunk with a later one.
                if received is not None and not self._stopped.is_set():
                    with self._condition:
                        self._received.append(received)
                        self._condition.notify_all()
            if isinstance(received, AsyncDeltaError):
                return

    def next_chunk(self, timeout_s: float) -> ActionChunk | None:
        """The next chunk, or None when none came in time; 0 is a poll.

        Raises:
            TransportError: As `Transport.receive_actions` does.
        """
        if not self._received:
            if self._role.acquire(blocking=False):
                try:
                    if not self._received:
                        return self._transport.receive_actions(timeout_s)
                finally:
                    self._role.release()
            with self._condition:
                self._condition.wait_for(lambda: bool(self._received), timeout_s)
        if not self._received:
            return None
        received = self._received.popleft()
        if isinstance(received, AsyncDeltaError):
            raise received
        return received

    def stop(self) -> None:
        """Let `receive_until_stopped` return; idempotent."""
        self._stopped.set()
