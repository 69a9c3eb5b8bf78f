"""`RobotActions`: what the robot did and is about to do, for a policy that wants to be told."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.transport import ActionPrefix, Observation, PrefixLimits

__all__ = ["RobotActions"]


class RobotActions:
    """Remembers the last actions of an episode, as many as a policy wants to be told of.

    Args:
        limits: How many those are; for a policy that wants none, nothing is kept.
        queue: Of the actions to come.
    """

    def __init__(self, limits: PrefixLimits, queue: ActionQueue) -> None:
        self._limits = limits
        self._queue = queue
        self._executed: deque[NDArray[np.float32]] = deque(maxlen=limits.executed)

    def start_episode(self) -> None:
        """Forget the last episode."""
        self._executed.clear()

    def note(self, action: NDArray[np.float32]) -> None:
        """The robot is about to execute this, from the queue or not."""
        self._executed.append(action)

    def write_to(self, observation: Observation) -> None:
        """Tell the policy, if it wants to be told, as `ActionPrefix` describes it."""
        if not self._limits:
            return
        committed = self._queue.upcoming(self._limits.committed)
        executed = np.reshape(np.array([*self._executed], np.float32), (-1, committed.shape[1]))
        observation.prefix = ActionPrefix(executed, committed)
