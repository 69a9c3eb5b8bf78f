"""`ShmSession`: one client's segment as the inference loop sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import Any, ClassVar

import posix_ipc
from posix_ipc import BusyError, SignalError

from async_delta_inference import stages
from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.inbox import ServedSession
from async_delta_inference.transport.messages import Observation, PastObservation, SessionSpec
from async_delta_inference.transport.policy import PolicyNeeds
from async_delta_inference.transport.shm.shared import handshake
from async_delta_inference.transport.shm.shared.connection import Connection
from async_delta_inference.transport.shm.shared.layout import (
    CHUNK_KIND,
    DELAY_SHIFT,
    ERROR_KIND,
    FILTERED_KIND,
    MAX_ERROR_BYTES,
    MUST_GO_FLAG,
)
from async_delta_inference.transport.shm.shared.segment import Segment

__all__ = ["ShmSession"]

_ROOM_SLICE_S = 0.1

REPLY_TIMEOUT_S = 5.0
"""How long a client may read none of its actions, while there is no room for another, before its session ends."""


class ShmSession(ServedSession):
    """Takes observations out of a segment, and puts replies into it.

    Args:
        spec: What the client asked for.
        label: Names the client in messages to humans.
        connection: Tells the client what there is to tell besides chunks.
    """

    def __init__(self, spec: SessionSpec, label: str, connection: Connection) -> None:
        super().__init__(spec, label)
        self._connection = connection
        self._row_bytes = 4 * spec.action_dim
        self._segment: Segment | None = None
        self._closing = threading.Lock()
        self._slot_held = False
        self._interrupted = False
        self._holds_token = False
        """Whether an unread observation is this side's already, though nobody has taken it."""
        self._task, self._task_number = "", 0
        # While there is no room for a reply: what was unread when that was last seen to change, and until when.
        self._unread = -1
        self._patience_until_s = 0.0

    def attach(self, segment: Segment) -> None:
        """Use this segment from here on; `close` closes it."""
        self._segment = segment
        self._ready = segment.observations_ready
        self._actions_ready, self._actions_free = segment.actions_ready, segment.actions_free
        self._tasks, self._advice = segment.tasks, segment.advice
        self._action_bytes = segment.action_bytes
        self._reader = segment.observation_reader()
        self._give_back = self._reader.give_back
        self._writer = segment.action_writer()
        # Read-only for the policy: the slot is the client's memory. The arrays are made once, the scalars per message.
        self._observations = [_read_only(observation) for observation in segment.observations]
        self._prefixes = segment.prefixes

    # Observations.

    def waiting(self) -> bool:  # noqa: D102
        return bool(self._holds_token or self._ready.value) and self._has_room()

    def take(self) -> Observation | None:  # noqa: D102
        if not (self._holds_token or self._ready.value) or not (self._writer.room or self._has_room()):
            return None
        if self._holds_token:
            self._holds_token = False
        else:
            try:
                self._ready.acquire(0)
            except (BusyError, SignalError):
                return None
        _, timestep, episode, timestamp_s, slot, task, task_bytes, flags = self._reader.take()
        if stages.recorder is not None:
            stages.recorder.mark(stages.TRANSFER, timestep)
        self._slot_held = True
        if task != self._task_number:
            self._read_task(slot, task, task_bytes)
        observation = self._observations[slot]
        observation.timestep = timestep
        observation.episode = episode
        observation.timestamp_s = timestamp_s
        observation.must_go = bool(flags & MUST_GO_FLAG)
        observation.inference_delay = (flags >> DELAY_SHIFT) - 1 if flags >> DELAY_SHIFT else None
        observation.task = self._task
        if self._prefixes:
            observation.prefix = self._prefixes[slot].read()
        return observation

    def release(self) -> None:  # noqa: D102
        if self._slot_held:
            self._slot_held = False
            self._give_back()

    def shared_memory(self) -> memoryview | None:  # noqa: D102
        return None if self._segment is None else self._segment.memory

    # Waiting for this session alone: that costs an exchange a semaphore's two operations less than the bell does.

    can_be_alone: ClassVar[bool] = True

    def be_alone(self, alone: bool) -> None:  # noqa: D102
        self._advice[0] = 0 if alone else 1

    def take_within(self, timeout_s: float) -> Observation | None:  # noqa: D102
        try:
            if not self._holds_token:
                self._ready.acquire(timeout_s)
                if self._interrupted:
                    return None
                self._holds_token = True
            elif not self._writer.room:
                self._actions_free.acquire(min(timeout_s, _ROOM_SLICE_S))
                self._writer.add_room()
                self._unread = -1
        except (BusyError, SignalError):
            if not self._holds_token:
                return None
        return self.take()

    def interrupt(self) -> None:  # noqa: D102
        with self._closing:
            if self._segment is not None and self._segment.is_open:
                # Not for a session that goes on: a token means that there is an observation.
                self._interrupted = True
                with suppress(OSError, posix_ipc.Error):
                    self._ready.release()

    def _read_task(self, slot: int, number: int, size: int) -> None:
        encoded = self._tasks[slot][:size].tobytes()
        try:
            self._task = encoded.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise ProtocolError(f"the task is not UTF-8: {exc}") from exc
        self._task_number = number

    # Replies.

    def answer(self, observation: Observation, data: bytes) -> None:  # noqa: D102
        if self._slot_held:
            self._slot_held = False
            self._give_back()
        self._action_bytes[self._writer.claim()][: len(data)] = data
        self._writer.publish(
            observation.timestep, observation.timestamp_s, monotonic_ns(), CHUNK_KIND, len(data) // self._row_bytes, 0
        )

    def fail(self, observation: Observation, reason: str) -> None:  # noqa: D102
        self._reply_without_actions(observation, ERROR_KIND, reason)

    def pass_over(self, observation: Observation) -> None:  # noqa: D102
        self._reply_without_actions(observation, FILTERED_KIND, "")

    def _reply_without_actions(self, to: Observation, kind: int, text: str) -> None:
        if self._slot_held:
            self.release()
        encoded = text.encode("utf-8", "replace")[:MAX_ERROR_BYTES]
        self._action_bytes[self._writer.claim()][: len(encoded)] = encoded
        self._writer.publish(to.timestep, to.timestamp_s, 0, kind, 0, len(encoded))

    def _has_room(self) -> bool:
        """Whether there is a slot for a reply. It comes back by half rings, and the client rings then.

        Raises:
            ProtocolError: The client has stopped reading.
        """
        if self._writer.room:
            return True
        try:
            self._actions_free.acquire(0)
        except (BusyError, SignalError):
            self._check_patience()
            return False
        self._writer.add_room()
        self._unread = -1
        return True

    def _check_patience(self) -> None:
        # One who reads slowly shows it here first.
        before, self._unread = self._unread, self._actions_ready.value
        now_s = time.monotonic()
        if self._unread != before:
            self._patience_until_s = now_s + REPLY_TIMEOUT_S
        elif now_s > self._patience_until_s:
            raise ProtocolError(
                f"the client has not read its actions for {REPLY_TIMEOUT_S:g} s: "
                f"{self._unread} of {len(self._action_bytes)} slots are unread"
            )

    # Beginning and end.

    def opened(self, needs: PolicyNeeds) -> None:  # noqa: D102
        self._connection.send(handshake.ready(needs.description, needs.computation))

    def refused(self, reason: str) -> None:  # noqa: D102
        self._say_last(handshake.refused, reason)

    def end(self, reason: str) -> None:  # noqa: D102
        self._say_last(handshake.bye, reason)

    def close(self) -> None:  # noqa: D102
        if self._segment is not None:
            with self._closing:  # Nobody may look at a semaphore that is closed.
                self._segment.close()

    def has_left(self) -> bool:  # noqa: D102
        return self._connection.at_end()

    def peek_timestep(self) -> int | None:  # noqa: D102
        with self._closing:
            if self._segment is None or not self._segment.is_open or not self._ready.value:
                return None
            return self._reader.peek_timestep()

    def _say_last(self, message: Callable[[str], Any], reason: str) -> None:
        self._connection.send(message(reason))
        self._connection.shut_down()


def _read_only(observation: Observation) -> Observation:
    *history, newest = (
        PastObservation({name: image.view() for name, image in seen.images.items()}, seen.state.view())
        for seen in observation.steps()
    )
    copy = Observation(newest.images, newest.state, history=tuple(history))
    copy.make_read_only()
    return copy
