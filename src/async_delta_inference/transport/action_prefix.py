"""`ActionPrefix`: what a robot did and is about to do, for a policy whose answer is to continue it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import InvalidMessageError
from async_delta_inference.transport.finite import is_finite

__all__ = ["NO_PREFIX", "ActionPrefix", "PrefixLimits"]

MAX_PREFIX_ROWS = 1024
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class PrefixLimits:
    """How many actions a policy wants to be told of; false where it wants none.

    Args:
        executed: Most rows of `ActionPrefix.executed`, in [0, 1024].
        committed: Most rows of `ActionPrefix.committed`, in [0, 1024].

    Raises:
        InvalidMessageError: A number is out of its range.
    """

    executed: int = 0
    committed: int = 0

    def __post_init__(self) -> None:
        for rows in (self.executed, self.committed):
            if type(rows) is not int or not 0 <= rows <= MAX_PREFIX_ROWS:
                raise InvalidMessageError(
                    f"a policy is told of 0 to {MAX_PREFIX_ROWS} actions of each kind, not {str(rows)[:20]}"
                )

    def __bool__(self) -> bool:
        return self.rows > 0

    @property
    def rows(self) -> int:
        """Of both kinds."""
        return self.executed + self.committed

    def bytes(self, action_dim: int) -> int:
        """Size of the longest prefix of actions of this length."""
        return 4 * self.rows * action_dim


NO_PREFIX = PrefixLimits()
"""Of a policy that wants to be told of none."""


@dataclass(slots=True, eq=False)
class ActionPrefix:
    """Actions around an observation of timestep t, in the environment's units, as its policy gave them.

    Args:
        executed: float32 (m, A): of the steps before t, the oldest first, the last one next to t; fewer than the policy
            wants at an episode's beginning. Where nothing was queued, what the robot held is among them.
        committed: float32 (n, A): what is queued for the timesteps t, t + 1, ... Of these, as many as
            `Observation.inference_delay` says are executed before the answer takes effect; the answer may change the
            others. None at an episode's beginning, and fewer than the delay where the queue runs out before.
    """

    executed: NDArray[np.float32]
    committed: NDArray[np.float32]

    @classmethod
    def empty(cls, action_dim: int) -> ActionPrefix:
        """No actions of this length."""
        return cls(np.empty((0, action_dim), np.float32), np.empty((0, action_dim), np.float32))

    @classmethod
    def of_rows(cls, rows: NDArray[np.float32], executed: int) -> ActionPrefix:
        """Both in one array, as they travel; ``executed`` of them come first."""
        return cls(rows[:executed], rows[executed:])

    def rows(self) -> NDArray[np.float32]:
        """Both in one array, the executed ones first: float32 (m + n, A)."""
        return np.concatenate([self.executed, self.committed])

    def copy(self) -> ActionPrefix:
        """A deep copy."""
        return ActionPrefix(self.executed.copy(), self.committed.copy())

    def make_read_only(self) -> None:
        """Have every later write to its arrays raise."""
        self.executed.setflags(write=False)
        self.committed.setflags(write=False)

    def check(self, limits: PrefixLimits, action_dim: int) -> None:
        """Refuse what was not agreed.

        Args:
            limits: Most rows.
            action_dim: Length A of an action.

        Raises:
            InvalidMessageError: A shape, a dtype or a number of rows is wrong, or an action is not finite.
        """
        for what, actions, most in (
            ("executed", self.executed, limits.executed),
            ("committed", self.committed, limits.committed),
        ):
            if type(actions) is not np.ndarray or actions.dtype is not _FLOAT32:
                raise InvalidMessageError(f"{what} actions must be a numpy array of float32")
            if actions.ndim != 2 or actions.shape[1] != action_dim or len(actions) > most:
                raise InvalidMessageError(
                    f"{what} actions must be (n, {action_dim}) with n <= {most}, got {actions.shape}"
                )
            if not is_finite(actions.tobytes()):
                raise InvalidMessageError(f"{what} actions must be finite")
