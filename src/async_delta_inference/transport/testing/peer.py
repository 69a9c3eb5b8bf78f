"""The other side of the contract suite: a server process with a scripted policy that a test can hold, fail and kill."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.transport.messages import ActionChunk, Observation, ObservationFeatures, SessionSpec

__all__ = ["CONTRACT_POLICY", "ContractPeer", "contract_observation", "scripted_actions"]

CONTRACT_POLICY = SessionSpec(
    policy_type="act",
    pretrained_name_or_path="scripted",
    actions_per_chunk=5,
    features=ObservationFeatures(
        state_names=("x", "y", "z", "grip"),
        images={"front": (12, 16, 3), "wrist": (8, 8, 3)},
    ),
    action_dim=3,
)
"""What every peer serves. PolicyServer knows the type ``act``; the peer puts the scripted policy in its place."""


class ContractPeer(ABC):
    """A running server in a process of its own. ``uri`` is where it is reached."""

    uri: str

    @abstractmethod
    def hold(self) -> None:
        """Let inferences begin but not end until `release`."""

    @abstractmethod
    def release(self) -> None:
        """End `hold`."""

    @abstractmethod
    def fail_next(self, message: str) -> None:
        """Make the next inference raise ``RuntimeError(message)``."""

    @abstractmethod
    def misbehave_next(self, how: str) -> None:
        """Make the next inference return actions that are ``"wide"`` (one column too many) or ``"nan"``."""

    @abstractmethod
    def seen(self) -> list[int]:
        """Timesteps (from ``state[0]``) of the observations whose inference began, in order."""

    @abstractmethod
    def pending(self) -> int | None:
        """Timestep of the observation that waits for inference, or None."""

    @abstractmethod
    def kill(self) -> None:
        """Die as with SIGKILL. Idempotent."""


def contract_observation(timestep: int, *, must_go: bool = True, episode: int = 0) -> Observation:
    """An observation that fits `CONTRACT_POLICY` and says its timestep in the state and in every pixel."""
    observation = Observation.empty(CONTRACT_POLICY.features)
    fill_contract_observation(observation, timestep)
    observation.must_go, observation.episode = must_go, episode
    return observation


def fill_contract_observation(observation: Observation, timestep: int) -> None:
    """Write what `contract_observation` holds into an observation, in place."""
    observation.state[:] = (timestep, 1.0, 2.0, 3.0)
    for image in observation.images.values():
        image[:] = timestep % 251
    observation.timestep = timestep
    observation.task = f"task {timestep % 7}"
    observation.timestamp_s = 1000.0 + timestep


def scripted_actions(timestep: int, pixel: int, rows: int = 5, width: int = 3) -> NDArray[np.float32]:
    """What the scripted policy answers: float32 (rows, width), exact in float32 for timesteps below 2**18.

    Args:
        timestep: Read from ``state[0]``.
        pixel: The value that every pixel of every image has; the policy raises when they differ (a torn frame).
        rows: Actions in the chunk.
        width: Length of an action.
    """
    row, column = np.mgrid[0:rows, 0:width]
    actions: NDArray[np.float32] = (timestep + row + column / 8 + pixel * 0.5).astype(np.float32)
    return actions


def expect_answer(chunk: ActionChunk | None, timestep: int) -> None:
    """Assert that ``chunk`` is the scripted policy's answer to `contract_observation` of ``timestep``."""
    assert chunk is not None, f"no chunk came for timestep {timestep}"
    assert chunk.timestep == timestep
    assert chunk.timestamp_s == 1000.0 + timestep
    np.testing.assert_array_equal(chunk.actions, scripted_actions(timestep, timestep % 251))
