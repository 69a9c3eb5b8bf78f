"""`Environment`: one task in one simulator, as the control loop sees it.

It differs from ``gymnasium.Env`` in two points. Stepping and looking are apart, since rendering is most of the cost of
a step and a chunked policy looks at one frame in ten or more; and what it sees is written straight into memory that
the transport loans.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.transport import Observation, ObservationFeatures

__all__ = ["Environment", "StepResult"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave.

    Args:
        reward: What this step earned.
        terminated: The task ended by itself.
        truncated: The simulator's own limit was hit; the limit `Environment.max_episode_steps` is the caller's to keep.
        success: The task counts as solved at this step; None where the environment does not say.
    """

    reward: float
    terminated: bool
    truncated: bool
    success: bool | None


class Environment(ABC):
    """One task. Where the simulator is expensive to build, the first `reset` builds it.

    Attributes:
        task_group: Suite or family, the first key of ``eval_info.json`` (``libero_object``).
        task_id: Index within the group.
        task_description: The instruction given to the policy; may be empty.
        features: Names and shapes of what it observes.
        action_dim: Length A of an action.
        max_episode_steps: Steps after which an episode is over.
        fps: Control steps per simulated second.
    """

    task_group: str
    task_id: int
    task_description: str
    features: ObservationFeatures
    action_dim: int
    max_episode_steps: int
    fps: float

    def episode(self, episode: int, seed: int | None) -> EpisodeSpec:
        """The specification of one of its episodes, as ``lerobot-eval`` would choose it.

        Args:
            episode: Index within the task, from 0.
            seed: What it is to be reset with.
        """
        return EpisodeSpec(self.task_group, self.task_id, episode, seed)

    @abstractmethod
    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        """Start an episode exactly as ``lerobot-eval`` would, whatever this environment has done before.

        Args:
            spec: What the episode depends on.
            render: Whether the first observation's frames will be wanted.

        Raises:
            EpisodeError: The simulator failed.
        """

    @abstractmethod
    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        """One control step.

        Args:
            action: float32 (A,).
            render: Whether the frames after this step will be wanted. States, rewards and the frames that are rendered
                do not depend on it.

        Raises:
            EpisodeError: The simulator failed, or was never reset.
        """

    @abstractmethod
    def state(self) -> NDArray[np.float32]:
        """float32 (S,): the current state vector, of its own memory; known after every step, rendered or not."""

    @abstractmethod
    def write_observation(self, observation: Observation) -> None:
        """Write the current images and state into ``observation``'s arrays, in place, as the policy is to see them.

        Raises:
            EpisodeError: The last reset or step was called with ``render=False``.
        """

    @abstractmethod
    def hold_action(self) -> NDArray[np.float32]:
        """float32 (A,): what a robot does while it has no action, computed from the current state."""

    @abstractmethod
    def video_frame(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) of the current state, for a video; what it costs changes nothing in the run."""

    @abstractmethod
    def close(self) -> None:
        """Release the simulator; idempotent. A later `reset` builds it anew."""
