"""LeRobot's own `LiberoEnv`, so that a demonstration holds exactly what an evaluation sees, and its cameras' gate.

The evaluation client hides the simulator, whose positions the expert needs, and opens its gate by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from async_delta_inference.client.environments.frame_gate import FrameGate
from async_delta_inference.client.environments.libero_cameras import gated_sensor

if TYPE_CHECKING:
    from lerobot.envs.libero import LiberoEnv

SUITE_NAME = "libero_object"
CONTROL_FREQUENCY_HZ = 20
CAMERA_OBSERVABLES = ("agentview_image", "robot0_eye_in_hand_image")


def make_libero_env(task_id: int, image_size_px: int, *, hard_reset: bool = True) -> LiberoEnv:
    """Builds LeRobot's LIBERO environment as `lerobot-eval` does, at the given image size.

    Args:
        task_id: index of the task in libero_object.
        image_size_px: height and width of both cameras, pixels.
        hard_reset: rebuild the model at each reset, as an evaluation does. A soft reset is three times faster.
    """
    from async_delta_inference.client.environments.libero_setup import prepare_libero

    prepare_libero()
    from lerobot.envs.libero import LiberoEnv, _get_suite

    return LiberoEnv(
        task_suite=_get_suite(SUITE_NAME),
        task_id=task_id,
        task_suite_name=SUITE_NAME,
        obs_type="pixels_agent_pos",
        observation_height=image_size_px,
        observation_width=image_size_px,
        control_freq=CONTROL_FREQUENCY_HZ,
        hard_reset=hard_reset,
    )


def to_policy_observation(observation: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Turns what `LiberoEnv` returns into the policy's observation, with LeRobot's own two steps.

    Returns:
        `observation.images.image` and `.image2`: float32 (1, 3, H, W) in 0..1, rotated by 180 degrees, and
        `observation.state`: float32 (1, 8), eef position (m), axis-angle (rad), gripper joint positions (m).
    """
    from lerobot.envs.utils import preprocess_observation
    from lerobot.processor.env_processor import LiberoProcessorStep

    return LiberoProcessorStep().observation(preprocess_observation(_with_batch_axis(observation)))


def _with_batch_axis(tree: dict[str, Any]) -> dict[str, Any]:
    """Adds the leading axis that a vector environment would add."""
    return {
        name: _with_batch_axis(value) if isinstance(value, dict) else np.asarray(value)[None]
        for name, value in tree.items()
    }


class CameraGate(FrameGate):
    """Lets the cameras of LeRobot's environment render only when wanted. Starts open."""

    def __init__(self, env: LiberoEnv) -> None:
        """Gates the cameras of a built environment, once attached."""
        super().__init__()
        self.is_open = True
        self._env = env

    def attach(self) -> None:
        """Wraps the cameras' sensors. Call again after a reset: a hard one builds new observables."""
        assert self._env._env is not None
        observables = self._env._env.env._observables
        shape = (self._env.observation_height, self._env.observation_width, 3)
        for name in CAMERA_OBSERVABLES:
            observable = observables[name]
            if getattr(observable._sensor, "is_gated", False):
                continue
            observable._sensor = gated_sensor(self, name, observable._sensor, shape)
            observable._sensor.is_gated = True
