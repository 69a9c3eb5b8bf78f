"""The actions that wait to be executed: one array, owned by the control loop alone, so that nothing needs a lock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.control.aggregation import AggregateFunction
from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport import ActionChunk

__all__ = ["ActionQueue", "Merge"]


@dataclass(frozen=True, slots=True)
class Merge:
    """What became of a chunk's actions.

    Args:
        stale: Came too late: their timesteps were executed already.
        aggregated: Met a queued action of the same timestep.
        appended: Extended the queue.
    """

    stale: int
    aggregated: int
    appended: int


class ActionQueue:
    """Queued actions of the timesteps ``next_timestep``, ``next_timestep + 1``, ... without a gap.

    Args:
        action_dim: Length A of an action.
        aggregate: Combines actions of overlapping chunks.
    """

    def __init__(self, action_dim: int, aggregate: AggregateFunction) -> None:
        self._aggregate = aggregate
        self._actions: NDArray[np.float32] = np.empty((0, action_dim), np.float32)
        self.next_timestep = 0
        """The timestep of the action to be executed next, queued or not."""
        self.chunk_size = 0
        """Length of the longest chunk so far; 0 before the first."""

    def __len__(self) -> int:
        return len(self._actions)

    def start_episode(self) -> None:
        """Forget what is queued. Timesteps go on: they never restart within a session."""
        self._actions = self._actions[:0]

    def wants_observation(self, chunk_size_threshold: float, length: int | None = None) -> bool:
        """Whether the queue is short enough to ask for the next chunk: length / chunk size <= threshold.

        Args:
            chunk_size_threshold: In [0, 1].
            length: How many actions will be queued at the time in question; None: as many as now.
        """
        queued = len(self) if length is None else length
        return queued <= 0 or (self.chunk_size > 0 and queued / self.chunk_size <= chunk_size_threshold)

    def merge(self, chunk: ActionChunk) -> Merge:
        """Queue a chunk. Actions already executed are dropped, overlapping ones aggregated; a queued action beyond the
        chunk's end is kept.

        Raises:
            ProtocolError: It begins after ``next_timestep``: no observation asked for that.
        """
        stale = self.next_timestep - chunk.timestep
        if stale < 0:
            raise ProtocolError(
                f"the server answered for timestep {chunk.timestep}, but {self.next_timestep} is still to come"
            )
        self.chunk_size = max(self.chunk_size, len(chunk))
        incoming = chunk.actions[stale:]
        overlap = min(len(self), len(incoming))
        appended = len(incoming) - overlap
        if overlap:
            combined = self._aggregate(self._actions[:overlap], incoming[:overlap])
            rest = incoming[overlap:] if appended else self._actions[overlap:]
            self._actions = np.concatenate([combined, rest]).astype(np.float32, copy=False)
        elif appended:
            self._actions = incoming
        return Merge(min(stale, len(chunk)), overlap, appended)

    def upcoming(self, most: int) -> NDArray[np.float32]:
        """What is queued for the next timesteps, not taken: float32 (n, A) with n <= most."""
        return self._actions[:most]

    def pop(self) -> NDArray[np.float32]:
        """Take the action of ``next_timestep``: float32 (A,). The queue must not be empty."""
        action: NDArray[np.float32] = self._actions[0]
        self._actions = self._actions[1:]
        self.next_timestep += 1
        return action

    def skip(self) -> None:
        """Let a timestep pass for which no action was queued."""
        self.next_timestep += 1
