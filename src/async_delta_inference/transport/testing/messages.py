"""What the contract's sessions say to each other, made so that whatever is lost, torn or crossed shows.

An observation says its timestep and its sender's number in the state, and a value made of both in every pixel; the
answer is computed from what arrived.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.transport.messages import ActionChunk, Observation, ObservationFeatures, SessionSpec

__all__ = [
    "CONTRACT_POLICY",
    "contract_observation",
    "contract_pixel",
    "expect_answer",
    "fill_contract_observation",
    "scripted_actions",
]

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
"""What the contract's sessions ask for. LeRobot knows the type ``act``; the scripted policy answers in its place."""


def contract_observation(timestep: int, *, client: int = 0, must_go: bool = True, episode: int = 0) -> Observation:
    """An observation that fits `CONTRACT_POLICY`.

    Args:
        timestep: At least 0.
        client: Number of the sender.
        must_go: See `Observation`.
        episode: See `Observation`.
    """
    observation = Observation.empty(CONTRACT_POLICY.features)
    fill_contract_observation(observation, timestep, client)
    observation.must_go, observation.episode = must_go, episode
    return observation


def fill_contract_observation(observation: Observation, timestep: int, client: int = 0) -> None:
    """Write what `contract_observation` holds into an observation, in place."""
    observation.state[:] = (timestep, client, 2.0, 3.0)
    for image in observation.images.values():
        image[:] = contract_pixel(timestep, client)
    observation.timestep = timestep
    observation.task = f"task {timestep % 7}"
    observation.timestamp_s = 1000.0 + timestep


def contract_pixel(timestep: int, client: int = 0) -> int:
    """The value of every pixel of a client's observation; two clients never send the same at one timestep."""
    return (timestep + 16 * client) % 251


def scripted_actions(timestep: int, pixel: int, client: int = 0, rows: int = 5, width: int = 3) -> NDArray[np.float32]:
    """What the scripted policy answers: float32 (rows, width), exact in float32 for timesteps below 2**16.

    Args:
        timestep: Read from ``state[0]``.
        pixel: The value that every pixel of every image has; a torn frame is an error.
        client: Read from ``state[1]``.
        rows: Actions in the chunk.
        width: Length of an action.
    """
    row, column = np.mgrid[0:rows, 0:width]
    actions: NDArray[np.float32] = (timestep + row + column / 8 + pixel * 0.5 + client * 1000).astype(np.float32)
    return actions


def expect_answer(chunk: ActionChunk | None, timestep: int, client: int = 0) -> None:
    """Assert that ``chunk`` is the scripted policy's answer to the client's observation of ``timestep``."""
    assert chunk is not None, f"no chunk came for timestep {timestep}"
    assert chunk.timestep == timestep
    assert chunk.timestamp_s == 1000.0 + timestep
    expected = scripted_actions(timestep, contract_pixel(timestep, client), client)
    np.testing.assert_array_equal(chunk.actions, expected)
