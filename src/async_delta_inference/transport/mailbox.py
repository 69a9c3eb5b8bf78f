"""`MailboxSession`: a session whose messages come from threads of the server's process.

It holds the newest observation, one at most, and the replies until somebody takes them. inproc and gRPC are built on
it; shared memory has its own ring, which is the same between two processes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from async_delta_inference import stages
from async_delta_inference.errors import PeerGoneError, PolicyError, SetupRefusedError
from async_delta_inference.transport.inbox import ServedSession
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec
from async_delta_inference.transport.policy import PolicyNeeds

__all__ = ["Filtered", "MailboxSession", "Reply"]

MAX_REPLIES = 32
"""That may wait for the client; no further observation is answered until it has taken one."""


@dataclass(frozen=True, slots=True)
class Filtered:
    """The policy chose not to answer the observation of this timestep."""

    timestep: int


Reply = ActionChunk | PolicyError | Filtered


class MailboxSession(ServedSession):
    """One client's observations and replies.

    Args:
        spec: What the client asked for.
        label: Names the client in messages to humans.
        ring: Wakes the inference loop.
    """

    def __init__(self, spec: SessionSpec, label: str, ring: Callable[[], None]) -> None:
        super().__init__(spec, label)
        self._ring = ring
        self._condition = threading.Condition()
        self._newest: Observation | None = None
        self._taken: Observation | None = None
        self._replies: deque[Reply] = deque()
        self._needs: PolicyNeeds | None = None
        self._refusal: str | None = None
        self._end: str | None = None

    # The client's side: any thread.

    def wait_until_open(self, timeout_s: float) -> PolicyNeeds | None:
        """What the policy says of itself once its session is open; None when it was not within ``timeout_s``.

        Raises:
            SetupRefusedError: There will be no session.
            PeerGoneError: The server was stopped meanwhile.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._needs or self._refusal is not None or self._end is not None, timeout_s
            )
            if self._refusal is not None:
                raise SetupRefusedError(self._refusal)
            if self._end is not None:
                raise PeerGoneError(f"the server ended the session before it began: {self._end}")
            return self._needs

    def post(self, observation: Observation) -> None:
        """Put an observation in the place of one that was not taken yet. The session owns it from here on."""
        if stages.recorder is not None:
            # Before it is there: the loop may mark the next stage at once.
            stages.recorder.mark(stages.TRANSFER, observation.timestep)
        with self._condition:
            if self._newest is not None and self._newest.must_go:
                observation.must_go = True
            self._newest = observation
        self._ring()

    def owes_reply(self) -> bool:
        """Whether an observation waits or is being answered, or a reply is there."""
        with self._condition:
            return bool(self._newest or self._taken or self._replies)

    def next_reply(self, timeout_s: float) -> Reply | None:
        """The next reply, in order; None when none came within ``timeout_s``.

        Raises:
            PeerGoneError: The session is over, and everything before that was taken.
        """
        with self._condition:
            if timeout_s > 0.0:
                self._condition.wait_for(lambda: self._replies or self._end is not None, timeout_s)
            if not self._replies:
                if self._end is not None:
                    raise PeerGoneError(f"the server ended the session: {self._end}")
                return None
            was_full = len(self._replies) >= MAX_REPLIES
            reply = self._replies.popleft()
        if was_full:
            self._ring()
        return reply

    # The inference loop's side.

    def opened(self, needs: PolicyNeeds) -> None:  # noqa: D102
        with self._condition:
            self._needs = needs
            self._condition.notify_all()

    def refused(self, reason: str) -> None:  # noqa: D102
        with self._condition:
            self._refusal = reason
            self._condition.notify_all()

    def waiting(self) -> bool:  # noqa: D102
        return self._newest is not None and len(self._replies) < MAX_REPLIES

    def take(self) -> Observation | None:  # noqa: D102
        with self._condition:
            observation = self._newest
            if observation is None or len(self._replies) >= MAX_REPLIES or self._end is not None:
                return None
            self._newest, self._taken = None, observation
        if stages.recorder is not None:
            stages.recorder.mark(stages.WAIT, observation.timestep)
        return observation

    def release(self) -> None:
        """Nothing to give back: the arrays are the observation's own."""

    def answer(self, observation: Observation, data: bytes) -> None:  # noqa: D102
        memory = bytearray(data)  # Written to by whoever likes: it is the client's.
        actions = np.frombuffer(memory, np.float32).reshape(-1, self.spec.action_dim)
        self._put(ActionChunk(actions, observation.timestep, observation.timestamp_s, memory=memory))

    def fail(self, observation: Observation, reason: str) -> None:  # noqa: D102
        self._put(PolicyError(reason, observation.timestep))

    def pass_over(self, observation: Observation) -> None:  # noqa: D102
        self._put(Filtered(observation.timestep))

    def end(self, reason: str) -> None:  # noqa: D102
        with self._condition:
            if self._end is None:
                self._end = reason
            self._condition.notify_all()

    def close(self) -> None:  # noqa: D102
        self.end("it was closed")

    def peek_timestep(self) -> int | None:  # noqa: D102
        newest = self._newest
        return None if newest is None else newest.timestep

    def _put(self, reply: Reply) -> None:
        with self._condition:
            self._taken = None
            if self._end is None:
                self._replies.append(reply)
            self._condition.notify_all()
