"""One client's session as the server sees it: takes observations, has them answered, hands the answers back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from posix_ipc import BusyError, Semaphore, SignalError

from async_delta_inference.errors import PolicyError, ProtocolError
from async_delta_inference.transport.messages import Observation, PolicySpec
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

_SLICE_S = 1.0
"""Bound of one wait on a semaphore, whatever a peer did to it and whatever the wall clock does."""

REPLY_TIMEOUT_S = 5.0
"""How long a client may leave all its action slots unread before its session ends."""


class ObservationHandler(Protocol):
    """What answers the observations of a session. All calls come from one thread."""

    def set_up(self, policy: PolicySpec) -> None:
        """Prepare for a new session.

        Raises:
            SetupRefusedError: It cannot be served. Any other exception refuses, too.
        """

    def infer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:
        """Answer one observation.

        Args:
            observation: Its arrays ARE the slot; it is the handler's until this returns or ``release`` is called.
            release: Gives the slot back early; may be called once.

        Returns:
            float32 (n, A), or None for an observation that is not to be answered.

        Raises:
            Exception: Is sent to the client as a `PolicyError`; the session goes on.
        """


class Session:
    """Serves one attached client until the client leaves, errs, or `end` is called.

    Args:
        segment: Created for it; closed by `close`.
        policy: As agreed.
        handler: Answers.
    """

    def __init__(self, segment: Segment, policy: PolicySpec, handler: ObservationHandler) -> None:
        self._segment = segment
        self._handler = handler
        self._chunk_rows, self._action_dim = policy.actions_per_chunk, policy.action_dim
        self._reader = segment.observation_reader()
        self._writer = segment.action_writer()
        self._over = False
        self._slot_held = False
        self._task = (b"", "")
        # Read-only for the handler: the slot is the client's memory. The arrays are made once, the scalars per message.
        self._observations = [_read_only(observation) for observation in segment.observations]

    @property
    def over(self) -> bool:
        """Whether `end` was called."""
        return self._over

    def end(self) -> None:
        """Make `serve` return soon, from any thread."""
        self._over = True
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
        ready = self._segment.observations_ready
        while not self._over:
            if _acquire(ready, _SLICE_S) and not self._over:
                self._answer()

    def _answer(self) -> None:
        observation = self._take()
        release = self._release
        try:
            actions = self._handler.infer(observation, release)
            if actions is not None:
                self._check(actions)
        except Exception as exc:
            logger.debug("inference failed for timestep %d", observation.timestep, exc_info=True)
            if self._slot_held:
                release()
            text = str(exc) if isinstance(exc, PolicyError) else f"{type(exc).__name__}: {exc}"
            self._reply(observation, ERROR_KIND, None, text)
            return
        if self._slot_held:
            release()
        if actions is None:
            self._reply(observation, FILTERED_KIND, None, "")
        else:
            self._reply(observation, CHUNK_KIND, actions, "")

    def _take(self) -> Observation:
        _, timestep, episode, timestamp_s, slot, task_bytes, flags = self._reader.take()
        observation = self._observations[slot]
        if not isfinite(observation.state.dot(observation.state)) and not np.isfinite(observation.state).all():
            raise ProtocolError(f"the state of timestep {timestep} is not finite")
        observation.timestep = timestep
        observation.episode = episode
        observation.timestamp_s = timestamp_s
        observation.must_go = flags & MUST_GO_FLAG == MUST_GO_FLAG
        observation.task = self._read_task(slot, task_bytes)
        self._slot_held = True
        return observation

    def _read_task(self, slot: int, task_bytes: int) -> str:
        encoded = self._segment.tasks[slot][:task_bytes].tobytes()
        known, task = self._task
        if encoded != known:
            try:
                task = encoded.decode("utf-8")
            except UnicodeDecodeError as exc:
                raise ProtocolError(f"the task is not UTF-8: {exc}") from exc
            self._task = (encoded, task)
        return task

    def _release(self) -> None:
        self._slot_held = False
        self._reader.give_back()

    def _check(self, actions: NDArray[np.float32]) -> None:
        if actions.dtype != np.float32 or actions.ndim != 2 or actions.shape[1] != self._action_dim:
            raise PolicyError(
                f"the policy gave actions of {actions.dtype} {actions.shape}; agreed were float32 "
                f"(n, {self._action_dim})"
            )
        if not 1 <= len(actions) <= self._chunk_rows:
            raise PolicyError(f"the policy gave {len(actions)} actions, agreed were 1 to {self._chunk_rows}")
        flat = actions.reshape(-1)
        if not isfinite(flat.dot(flat)) and not np.isfinite(actions).all():
            raise PolicyError("the policy gave actions that are not finite")

    def _reply(self, to: Observation, kind: int, actions: NDArray[np.float32] | None, text: str) -> None:
        if not self._await_room():
            return
        slot = self._writer.claim()
        rows = text_bytes = 0
        if actions is not None:
            rows = len(actions)
            target = self._segment.actions[slot]
            if rows != self._chunk_rows:
                target = target[:rows]
            target[...] = actions
        elif text:
            encoded = text.encode("utf-8", "replace")[:MAX_ERROR_BYTES]
            text_bytes = len(encoded)
            self._segment.texts[slot][:text_bytes] = encoded
        self._writer.publish(to.timestep, to.timestamp_s, kind, rows, text_bytes)

    def _await_room(self) -> bool:
        """Whether there is a slot for a reply; False when the session ended meanwhile.

        Raises:
            ProtocolError: The client has stopped reading.
        """
        free = self._segment.actions_free
        try:
            free.acquire(0)
            return True
        except (BusyError, SignalError):
            deadline_s = time.monotonic() + REPLY_TIMEOUT_S
        while not self._over:
            if _acquire(free, 0.1):
                return True
            if time.monotonic() > deadline_s:
                raise ProtocolError(
                    f"the client has not read its actions for {REPLY_TIMEOUT_S:g} s: all "
                    f"{self._segment.layout.action_slots} slots are full"
                )
        return False


def _acquire(semaphore: Semaphore, timeout_s: float) -> bool:
    try:
        semaphore.acquire(timeout_s)
    except (BusyError, SignalError):
        return False
    return True


def _read_only(observation: Observation) -> Observation:
    images = {name: image.view() for name, image in observation.images.items()}
    copy = replace(observation, images=images, state=observation.state.view())
    copy.state.setflags(write=False)
    for image in images.values():
        image.setflags(write=False)
    return copy
