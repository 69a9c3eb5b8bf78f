"""One client's session as the server sees it: takes observations, has them answered, hands the answers back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from time import monotonic_ns
from typing import Protocol

import numpy as np
import posix_ipc
from numpy.typing import NDArray
from posix_ipc import BusyError, SignalError

from async_delta_inference import stages
from async_delta_inference.errors import PolicyError, ProtocolError
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.shm.layout import (
    CHUNK_KIND,
    ERROR_KIND,
    FILTERED_KIND,
    MAX_ERROR_BYTES,
    MUST_GO_FLAG,
)
from async_delta_inference.transport.shm.segment import Segment

__all__ = ["ObservationHandler", "Session"]

logger = logging.getLogger(__name__)

_FLOAT32 = np.dtype(np.float32)

_SLICE_S = 1.0
"""Bound of one wait on a semaphore, whatever a peer did to it and whatever the wall clock does."""

_ROOM_SLICE_S = 0.1

REPLY_TIMEOUT_S = 5.0
"""How long a client may read none of its actions, while there is no room for another, before its session ends."""


class ObservationHandler(Protocol):
    """What answers the observations of a session. All calls come from one thread."""

    def set_up(self, policy: SessionSpec) -> None:
        """Prepare for a new session.

        Raises:
            SetupRefusedError: It cannot be served. Any other exception refuses, too.
        """

    def infer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:
        """Answer one observation.

        Args:
            observation: Its arrays ARE the slot; it is the handler's until this returns or ``release`` is called.
            release: Gives the slot back early; a second call does nothing.

        Returns:
            float32 (n, A), finite, or None for an observation that is not to be answered. It is copied at once.

        Raises:
            ProtocolError: The observation is one that no client may send; the session ends.
            Exception: Any other is sent to the client as a `PolicyError`; the session goes on.
        """


class Session:
    """Serves one attached client until the client leaves, errs, or `end` is called.

    Args:
        segment: Created for it; closed by `close`.
        policy: As agreed.
        handler: Answers.
    """

    def __init__(self, segment: Segment, policy: SessionSpec, handler: ObservationHandler) -> None:
        self._segment = segment
        self._infer = handler.infer
        self._chunk_shape = (policy.actions_per_chunk, policy.action_dim)
        self._action_bytes = segment.action_bytes
        self._reader = segment.observation_reader()
        self._writer = segment.action_writer()
        self._over = False
        self._slot_held = False
        self._task, self._task_number = "", 0
        # Read-only for the handler: the slot is the client's memory. The arrays are made once, the scalars per message.
        self._observations = [_read_only(observation) for observation in segment.observations]

    @property
    def over(self) -> bool:
        """Whether `end` was called."""
        return self._over

    def end(self) -> None:
        """Make `serve` return soon, from any thread."""
        self._over = True
        # A semaphore that the client has broken cannot wake anybody: the bound of the wait does.
        with suppress(OSError, posix_ipc.Error):
            self._segment.observations_ready.release()

    def close(self) -> None:
        """Release the semaphores, once `serve` has returned and nobody calls `end` any more."""
        self._segment.close()

    def pending_timestep(self) -> int | None:
        """Timestep of the observation that waits, or None; for diagnosis, it may change at once."""
        return self._reader.peek_timestep() if self._segment.observations_ready.value else None

    def serve(self) -> None:
        """Answer observations until the session is over.

        Raises:
            ProtocolError: The client broke the rules; its session is to be ended.
        """
        acquire = self._segment.observations_ready.acquire
        while not self._over:
            try:
                acquire(_SLICE_S)
            except (BusyError, SignalError):
                continue
            if not self._over:
                self._answer()

    def _answer(self) -> None:
        _, timestep, episode, timestamp_s, slot, task, task_bytes, flags = self._reader.take()
        if stages.recorder is not None:
            stages.recorder.mark(stages.TRANSFER, timestep)
        if task != self._task_number:
            self._read_task(slot, task, task_bytes)
        observation = self._observations[slot]
        observation.timestep = timestep
        observation.episode = episode
        observation.timestamp_s = timestamp_s
        observation.must_go = flags == MUST_GO_FLAG
        observation.task = self._task
        self._slot_held = True
        try:
            actions = self._infer(observation, self._release)
            if actions is not None and (actions.shape != self._chunk_shape or actions.dtype is not _FLOAT32):
                self._check(actions)
        except ProtocolError:
            raise
        except (Exception, SystemExit) as exc:
            logger.debug("inference failed for timestep %d", timestep, exc_info=True)
            self._release()
            text = str(exc) if isinstance(exc, PolicyError) else f"{type(exc).__name__}: {exc}"
            self._reply_without_actions(observation, ERROR_KIND, text)
            return
        if self._slot_held:
            self._release()
        if actions is None:
            self._reply_without_actions(observation, FILTERED_KIND, "")
            return
        if not self._writer.room and not self._await_room():
            return
        rows = len(actions)
        data = actions.tobytes()  # Two plain copies: an assignment looks for a cast first.
        self._action_bytes[self._writer.claim()][: len(data)] = data
        self._writer.publish(timestep, timestamp_s, monotonic_ns(), CHUNK_KIND, rows, 0)

    def _read_task(self, slot: int, number: int, size: int) -> None:
        encoded = self._segment.tasks[slot][:size].tobytes()
        try:
            self._task = encoded.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise ProtocolError(f"the task is not UTF-8: {exc}") from exc
        self._task_number = number

    def _release(self) -> None:
        if self._slot_held:
            self._slot_held = False
            self._reader.give_back()

    def _check(self, actions: NDArray[np.float32]) -> None:
        rows, columns = self._chunk_shape
        if actions.dtype != np.float32 or actions.ndim != 2 or actions.shape[1] != columns:
            raise PolicyError(
                f"the policy gave actions of {actions.dtype} {actions.shape}; agreed were float32 (n, {columns})"
            )
        if not 1 <= len(actions) <= rows:
            raise PolicyError(f"the policy gave {len(actions)} actions, agreed were 1 to {rows}")

    def _reply_without_actions(self, to: Observation, kind: int, text: str) -> None:
        if not self._writer.room and not self._await_room():
            return
        encoded = text.encode("utf-8", "replace")[:MAX_ERROR_BYTES]
        self._action_bytes[self._writer.claim()][: len(encoded)] = encoded
        self._writer.publish(to.timestep, to.timestamp_s, 0, kind, 0, len(encoded))

    def _await_room(self) -> bool:
        """Whether there is a slot for a reply; False when the session ended meanwhile.

        Raises:
            ProtocolError: The client has stopped reading.
        """
        deadline_s = time.monotonic() + REPLY_TIMEOUT_S
        unread = self._segment.actions_ready.value
        while not self._over:
            try:
                self._segment.actions_free.acquire(_ROOM_SLICE_S)
                self._writer.add_room()
                return True
            except (BusyError, SignalError):
                now_s = time.monotonic()
                # Slots come back by the half ring: one who reads slowly shows it here first.
                before, unread = unread, self._segment.actions_ready.value
                if unread != before:
                    deadline_s = now_s + REPLY_TIMEOUT_S
                elif now_s > deadline_s:
                    raise ProtocolError(
                        f"the client has not read its actions for {REPLY_TIMEOUT_S:g} s: "
                        f"{unread} of {len(self._action_bytes)} slots are unread"
                    ) from None
        return False


def _read_only(observation: Observation) -> Observation:
    images = {name: image.view() for name, image in observation.images.items()}
    copy = replace(observation, images=images, state=observation.state.view())
    copy.state.setflags(write=False)
    for image in images.values():
        image.setflags(write=False)
    return copy
