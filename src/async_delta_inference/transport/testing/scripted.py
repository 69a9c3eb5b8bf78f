"""`ScriptedTransport`: a transport whose answers show when a test says, for the rules of whoever receives them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import PolicyError, TransportError
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.inproc import InprocListener, InprocTransport
from async_delta_inference.transport.mailbox import Filtered, Reply
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec
from async_delta_inference.transport.policy import Answer, FunctionPolicy, Policy, Request
from async_delta_inference.transport.server import Server, serve

__all__ = ["ScriptedAnswer", "ScriptedTransport", "timestep_policy"]

ANSWER_TIMEOUT_S = 60.0
_TURN_S = 0.005

ScriptedAnswer = Callable[[Observation], NDArray[np.float32] | None]
"""From an observation to actions; None for one that is not answered, as by PolicyServer's filter."""


@dataclass
class _Held:
    observation: Observation
    reply: Reply
    polls_left: float


class ScriptedTransport(InprocTransport):
    """``inproc`` with a server of its own, where sending waits for the answer, which is then held back.

    So the order of events is the test's and not a matter of luck; what is sent, checked, computed and refused is the
    real backend's.

    Args:
        policy: Served; or a function from an observation to actions.
        polls: How many polls find nothing before one finds the answer, which whoever waits finds at once. A number, or
            a function of the observation.
        options: Deadlines.
        ready: Besides, whether the answer to an observation may show now.
    """

    def __init__(
        self,
        policy: Policy | ScriptedAnswer,
        polls: int | Callable[[Observation], int] = 0,
        options: TransportOptions | None = None,
        *,
        ready: Callable[[Observation], bool] = lambda _: True,
    ) -> None:
        super().__init__(InprocListener.unused_address(), options)
        self.sent: list[Observation] = []
        """Copies of what was sent, in order."""
        self.errors: deque[TransportError] = deque()
        """Raised, one a look, before any answer."""
        self.silent = False
        """While it is set, nothing shows."""
        self.away = False
        """While it is set, nothing shows nor is expected: the server is being waited for. See `come_back`."""
        self._policy = policy if isinstance(policy, Policy) else _FilteringFunction(policy)
        self._polls_of = polls if callable(polls) else lambda _: polls
        self._ready = ready
        self._held: deque[_Held] = deque()
        self._server: Server | None = None

    @property
    def spec(self) -> SessionSpec | None:
        """What was asked for; None before it was connected."""
        return self._spec

    def come_back(self) -> None:
        """End `away`: an answer has the whole of its time again."""
        self._restart_deadline()
        self.away = False

    def _connect(self, spec: SessionSpec) -> str:
        self._server = serve(self._policy, f"inproc://{self.address}")
        return super()._connect(spec)

    def _send(self, observation: Observation) -> None:
        assert self._session is not None
        copy = observation.copy()
        super()._send(observation)
        reply = self._session.next_reply(ANSWER_TIMEOUT_S)
        assert reply is not None, "the policy took too long"
        self.sent.append(copy)
        self._held.append(_Held(copy, reply, self._polls_of(copy)))

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        until_s = time.monotonic() + timeout_s
        for held in list(self._held):
            held.polls_left -= 1
        while True:
            if self._may_show(waits=timeout_s > 0.0):
                reply = self._held.popleft().reply
                if isinstance(reply, PolicyError):
                    raise reply
                if not isinstance(reply, Filtered):
                    return reply
                self._note_answer(reply.timestep)
            left_s = until_s - time.monotonic()
            if left_s <= 0.0 or self._closed.wait(min(left_s, _TURN_S)):
                return None

    def _may_show(self, *, waits: bool) -> bool:
        if self.errors:
            raise self.errors.popleft()
        if self.silent or self.away or not self._held:
            return False
        first = self._held[0]
        if waits:  # Also for what was sent during the wait.
            first.polls_left = -math.inf
        return first.polls_left < 0 and self._ready(first.observation)

    def _expects_answers(self) -> bool:
        return not self.away

    def _close(self) -> None:
        super()._close()
        if self._server is not None:
            self._server.stop()


class _FilteringFunction(FunctionPolicy):
    """A function that may choose not to answer."""

    def __init__(self, function: ScriptedAnswer) -> None:
        super().__init__(self._answer_or_nothing, "a scripted function")
        self._scripted = function
        self._declined = False

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        self._declined = False
        answers = super().infer(requests)
        return [None] if self._declined else answers

    def _answer_or_nothing(self, observation: Observation) -> NDArray[np.float32]:
        actions = self._scripted(observation)
        self._declined = actions is None
        return np.zeros((1, 1), np.float32) if actions is None else actions


def timestep_policy(rows: int, width: int = 2) -> ScriptedAnswer:
    """Actions that say which timestep they are for: rows of [timestep, chunk's timestep, 0, ...]."""

    def policy(observation: Observation) -> NDArray[np.float32]:
        actions = np.zeros((rows, width), np.float32)
        actions[:, 0] = observation.timestep + np.arange(rows)
        actions[:, 1] = observation.timestep
        return actions

    return policy
