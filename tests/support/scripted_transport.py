"""A transport without a server, whose answers come when a test says: for the logic of the control loop alone.

It stands where a real transport would make the order of events a matter of luck; the real ones run the same loop in
test_sim_client.py.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import TransportError
from async_delta_inference.transport import ActionChunk, Observation, SessionSpec, Transport

Policy = Callable[[Observation], NDArray[np.float32]]


def timestep_policy(rows: int, width: int = 2) -> Policy:
    """Actions that say which timestep they are for: [timestep, chunk's timestep, ...]."""

    def policy(observation: Observation) -> NDArray[np.float32]:
        actions = np.zeros((rows, width), np.float32)
        actions[:, 0] = observation.timestep + np.arange(rows)
        actions[:, 1] = observation.timestep
        return actions

    return policy


class ScriptedTransport(Transport):
    """Answers ``policy(observation)`` after ``polls`` looks, newest observation first while it is busy.

    Args:
        policy: From an observation to actions.
        polls: How often `receive_actions` finds nothing before it finds the answer; a wait of more than 0 s finds it.
    """

    def __init__(self, policy: Policy, polls: int = 0) -> None:
        super().__init__("scripted")
        self.sent: list[Observation] = []
        self.errors: deque[TransportError] = deque()
        self.silent = False
        self._policy_fn = policy
        self._polls = polls
        self._looked = 0
        self._answers: deque[ActionChunk] = deque()
        self._lock = threading.Lock()

    def _connect(self, policy: SessionSpec) -> None:
        pass

    def _send(self, observation: Observation) -> None:
        copy = observation.copy()
        with self._lock:
            self.sent.append(copy)
            self._answers.append(ActionChunk(self._policy_fn(copy), copy.timestep, copy.timestamp_s))
            self._looked = 0

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        with self._lock:
            if self.errors:
                raise self.errors.popleft()
            self._looked += 1
            if self._answers and not self.silent and (timeout_s > 0 or self._looked > self._polls):
                return self._answers.popleft()
        time.sleep(min(timeout_s, 0.01))
        return None

    def _close(self) -> None:
        pass
