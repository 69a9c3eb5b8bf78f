"""PolicyServer's filter: which observations it answers, remembered for one session."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["SimilarityFilter"]

_CLOSEST = 1
"""Distance of two states, by the norm of their difference, below which they count as the same."""


class SimilarityFilter:
    """Decides as PolicyServer's ``_enqueue_observation`` does, bit for bit, on the state itself.

    Upstream makes a dictionary of floats of every state and, when it compares two, arrays of both dictionaries. Its
    functions are named in `lerobot_internals.REPLACED`.
    """

    def __init__(self) -> None:
        self._answered_state: NDArray[np.float32] | None = None
        self._answered_timestep = -1

    def forget(self) -> None:
        """An episode begins: the next observation passes."""
        self._answered_state = None
        self._answered_timestep = -1

    def passes(self, timestep: int, must_go: bool, state: NDArray[np.float32]) -> bool:
        """Whether an observation is to be answered."""
        before = self._answered_state
        if must_go or before is None:
            return True
        if timestep == self._answered_timestep:  # It stands for all before it: a session's timesteps do not decrease.
            return False
        distance = torch.linalg.norm(torch.from_numpy(state) - torch.from_numpy(before))
        return not bool(distance < _CLOSEST)

    def begin(self, timestep: int) -> None:
        """The observation of ``timestep`` is being answered, whatever comes of it."""
        self._answered_timestep = timestep

    def remember(self, state: NDArray[np.float32]) -> None:
        """The policy is given this state, which the filter owns from here on."""
        self._answered_state = state
