"""What an environment writes for the policy, against LeRobot's `preprocess_observation` and `LiberoProcessorStep`."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from lerobot.envs.utils import preprocess_observation
from lerobot.processor.env_processor import LiberoProcessorStep
from numpy.typing import NDArray

from async_delta_inference.client.environments.observation import (
    camera_images,
    is_libero,
    quaternion_to_axis_angle,
    state_vector,
    write_image,
)
from async_delta_inference.errors import ConfigError

RNG = np.random.default_rng(0)


def random_image(height: int = 12, width: int = 10) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def libero_observation(quaternion: NDArray[np.float64] | None = None) -> dict[str, Any]:
    if quaternion is None:
        quaternion = RNG.normal(size=4)
        quaternion /= np.linalg.norm(quaternion)
    return {
        "pixels": {"image": random_image(), "image2": random_image()},
        "robot_state": {
            "eef": {"pos": RNG.normal(size=3), "quat": quaternion, "mat": RNG.normal(size=(3, 3))},
            "gripper": {"qpos": RNG.normal(size=2), "qvel": RNG.normal(size=2)},
            "joints": {"pos": RNG.normal(size=7), "vel": RNG.normal(size=7)},
        },
    }


def batched(tree: Any) -> Any:
    return {k: batched(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)[None]


def through_lerobot(observation: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = preprocess_observation(batched(observation))
    return LiberoProcessorStep().observation(tensors) if "robot_state" in observation else tensors


def as_lerobot_image(image: NDArray[np.uint8]) -> torch.Tensor:
    return (torch.from_numpy(image).permute(2, 0, 1).float() / 255)[None]


def written(observation: dict[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """By camera, as an environment writes it into the memory that it is given."""
    images = {}
    for camera, image in camera_images(observation).items():
        images[camera] = np.empty(image.shape, np.uint8)
        write_image(image, images[camera], rotate=is_libero(observation))
    return images


def assert_equal_to_lerobot(observation: dict[str, Any], names: dict[str, str]) -> None:
    """``names``: camera to LeRobot's key."""
    images, state, theirs = written(observation), state_vector(observation), through_lerobot(observation)
    assert images.keys() == names.keys()
    for camera, their_name in names.items():
        assert torch.equal(as_lerobot_image(images[camera]), theirs[their_name])
    assert state.dtype == np.float32
    assert state[None].tobytes() == theirs["observation.state"].numpy().tobytes()


def test_libero_equals_lerobot_bit_for_bit() -> None:
    names = {name: f"observation.images.{name}" for name in ("image", "image2")}
    for _ in range(20):
        assert_equal_to_lerobot(libero_observation(), names)


def test_single_camera_is_served_as_image() -> None:
    observation = {"pixels": random_image(), "agent_pos": RNG.normal(size=2)}
    assert_equal_to_lerobot(observation, {"image": "observation.image"})


def test_named_cameras_keep_their_names() -> None:
    observation = {"pixels": {"top": random_image()}, "agent_pos": RNG.normal(size=14)}
    assert_equal_to_lerobot(observation, {"top": "observation.images.top"})


UNIT_COMPONENTS = npst.arrays(np.float64, 4, elements=st.floats(-1, 1))


@settings(max_examples=500, deadline=None)
@given(UNIT_COMPONENTS)
@example(np.array([0.0, 0.0, 0.0, 1.0]))
@example(np.array([0.0, 0.0, 0.0, -1.0]))
@example(np.array([0.0, 0.0, 0.0, 0.0]))
@example(np.array([1e-9, 0.0, 0.0, 1.0 + 1e-9]))
@example(np.array([1e-4, 0.0, 0.0, -0.99999997]))
@example(np.array([0.0, 1.0, 0.0, -0.0]))
def test_axis_angle_equals_lerobot(quaternion: NDArray[np.float64]) -> None:
    norm = float(np.linalg.norm(quaternion))
    for candidate in (quaternion, quaternion / norm if norm > 1e-6 else quaternion):
        for signed in (candidate, -candidate):
            theirs = LiberoProcessorStep()._quat2axisangle(torch.from_numpy(signed[None])).numpy()
            assert quaternion_to_axis_angle(signed)[None].tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("observation", "missing"),
    [
        ({"agent_pos": np.zeros(2)}, "pixels"),
        ({"pixels": {"image": [[[0, 0, 0]]]}, "agent_pos": np.zeros(2)}, "got a list"),
        ({"pixels": {"image": random_image()}}, "agent_pos"),
    ],
)
def test_what_is_missing_is_named(observation: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        (camera_images(observation), state_vector(observation))


def test_the_environments_part_of_a_state_comes_last_and_stands_in_for_pixels() -> None:
    observation = {"environment_state": np.arange(3.0), "agent_pos": np.array([[7.0, 8.0]])}
    assert camera_images(observation) == {}
    assert state_vector(observation).tolist() == [7, 8, 0, 1, 2]
    assert state_vector({"environment_state": np.arange(3.0)}).tolist() == [0, 1, 2]


def test_state_vector_flattens_and_copies() -> None:
    source = np.arange(3, dtype=np.float32)
    vector = state_vector({"agent_pos": source})
    source[:] = -1
    assert vector.tolist() == [0, 1, 2]
