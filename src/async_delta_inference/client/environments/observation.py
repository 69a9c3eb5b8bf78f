"""What a simulator returns, as the policy is to see it: equal, bit for bit, to LeRobot's own two processing steps.

LeRobot's evaluation turns an observation into tensors (``preprocess_observation``) and then, for LIBERO, rotates the
images by 180 degrees and builds the state vector (``LiberoProcessorStep``). PolicyServer does the tensor part itself
and wants images as uint8, so the same is done here on numpy arrays, without a batch axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ConfigError

__all__ = [
    "ENVIRONMENT_STATE_PART",
    "LIBERO_STATE_NAMES",
    "SINGLE_CAMERA",
    "camera_images",
    "is_libero",
    "quaternion_to_axis_angle",
    "state_parts",
    "state_vector",
    "write_image",
]

SINGLE_CAMERA = "image"
"""Name of a camera that has none: LeRobot's ``observation.image`` is served as ``observation.images.image``, since
PolicyServer can serve no other key."""

ENVIRONMENT_STATE_PART = "environment_state"
"""What a simulator, and `state_parts`, call the part of a state that is not the robot's: PushT's keypoints, say."""

LIBERO_STATE_NAMES = (
    "eef_pos_x",
    "eef_pos_y",
    "eef_pos_z",
    "eef_axis_angle_x",
    "eef_axis_angle_y",
    "eef_axis_angle_z",
    "gripper_qpos_left",
    "gripper_qpos_right",
)
"""What the elements of a state are for LIBERO's ``robot_state``: metres, radians, metres."""

_QUATERNION = "eef.quat"


def is_libero(observation: Mapping[str, Any]) -> bool:
    """Whether LeRobot would apply ``LiberoProcessorStep`` to it: images upside down, state in parts."""
    return "robot_state" in observation


def camera_images(observation: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Camera name to image, as the simulator gave it: neither copied nor rotated, in whatever form.

    None where it gives an ``environment_state`` instead, which is what LeRobot's policies can do with, too.

    Raises:
        ConfigError: There are neither pixels nor an ``environment_state``, or an image is no array.
    """
    if "pixels" not in observation and ENVIRONMENT_STATE_PART in observation:
        return {}
    if "pixels" not in observation:
        raise ConfigError(
            f"the observation has no 'pixels' but {sorted(observation)}: a policy server needs images and a state; try "
            "--env.obs_type=pixels_agent_pos"
        )
    pixels = observation["pixels"]
    images = dict(pixels) if isinstance(pixels, Mapping) else {SINGLE_CAMERA: pixels}
    for camera, image in images.items():
        if not isinstance(image, np.ndarray):
            raise ConfigError(
                f"camera {camera!r} must give an array (height, width, channels), got a {type(image).__name__}"
            )
    return images


def state_vector(observation: Mapping[str, Any]) -> NDArray[np.float32]:
    """float32 (S,), of its own memory: the robot's part, then the environment's.

    The robot's is ``agent_pos``, or LIBERO's eight numbers named in `LIBERO_STATE_NAMES`; the other is what LeRobot
    gives to policies as ``observation.environment_state``.

    Raises:
        ConfigError: There is neither.
    """
    parts = state_parts(observation)
    if _QUATERNION in parts:
        parts[_QUATERNION] = quaternion_to_axis_angle(parts[_QUATERNION])
    return np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts.values()])


def state_parts(observation: Mapping[str, Any]) -> dict[str, Any]:
    """What a state vector is made of, as the simulator gave it, in order: ``agent_pos``, or LIBERO's three by their
    paths, and `ENVIRONMENT_STATE_PART` where it gives that.

    Raises:
        ConfigError: There is none of them.
    """
    parts = _robot_parts(observation)
    if ENVIRONMENT_STATE_PART in observation:
        parts[ENVIRONMENT_STATE_PART] = observation[ENVIRONMENT_STATE_PART]
    if not parts:
        raise ConfigError(
            f"the observation has no 'agent_pos', 'robot_state' or 'environment_state' but {sorted(observation)}: a "
            "policy server cannot serve a policy without a state; try --env.obs_type=pixels_agent_pos"
        )
    return parts


def _robot_parts(observation: Mapping[str, Any]) -> dict[str, Any]:
    if is_libero(observation):
        robot_state = observation["robot_state"]
        eef = robot_state["eef"]
        return {"eef.pos": eef["pos"], _QUATERNION: eef["quat"], "gripper.qpos": robot_state["gripper"]["qpos"]}
    return {"agent_pos": observation["agent_pos"]} if "agent_pos" in observation else {}


def quaternion_to_axis_angle(quaternion: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Axis times angle, in radians, in [0, 2 pi): the antipodal quaternion gives another vector, as in LeRobot.

    Args:
        quaternion: (4,) in the order x, y, z, w.

    Returns:
        float32 (3,).
    """
    # In torch, as LeRobot has it: its float32 square root and arc cosine differ from numpy's in the last bit for about
    # one argument in thirty.
    import torch

    xyzw = torch.from_numpy(np.asarray(quaternion, np.float32))
    cosine = xyzw[3:].clamp(-1.0, 1.0)
    sine = torch.sqrt(torch.clamp(1.0 - cosine * cosine, min=0.0))
    if not sine.item() > 1e-10:
        return np.zeros(3, np.float32)
    axis_angle: NDArray[np.float32] = (xyzw[:3] / sine * (2.0 * torch.acos(cosine))).numpy()
    return axis_angle


def write_image(source: NDArray[np.uint8], target: NDArray[np.uint8], rotate: bool) -> None:
    """Copy an image into given memory, on the way rotated by 180 degrees where wanted.

    Args:
        source: uint8 (H, W, C).
        target: uint8 (H, W, C), contiguous.
        rotate: Whether both axes are to be flipped.
    """
    if not rotate:
        np.copyto(target, source)
        return
    import cv2

    # Forty times faster than copying a reversed view. A target it cannot write to in place it replaces with its own.
    if cv2.flip(source, -1, dst=target) is not target:
        np.copyto(target, source[::-1, ::-1])
