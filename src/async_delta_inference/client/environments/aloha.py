"""Aloha: two arms that insert a peg or hand over a cube, rendering on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.construction import build_tasks, require_packages
from async_delta_inference.client.environments.frame_gate import FrameGate
from async_delta_inference.client.environments.headless import require_renderer
from async_delta_inference.client.environments.lerobot_env import EnvironmentTraits, LeRobotEnvironment
from async_delta_inference.client.environments.registry import register_environment
from async_delta_inference.errors import ConfigError

if TYPE_CHECKING:
    import gymnasium

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")


class _TopCamera(FrameGate):
    """Stands before dm_control's ``Physics.render``, which the task calls for three cameras at every observation.

    gym-aloha passes on the one called ``top`` and drops the others, so those are not rendered at all.

    Args:
        physics: The simulator's, in dm_control.
    """

    def __init__(self, physics: Any) -> None:
        super().__init__()
        self._render = physics.render
        physics.render = self.render

    def render(self, *, height: int, width: int, camera_id: str) -> NDArray[np.uint8]:
        shape = (height, width, 3)
        if camera_id != "top":
            return np.zeros(shape, np.uint8)
        return self.look(camera_id, shape, lambda: self._render(height=height, width=width, camera_id=camera_id))


def _gate_of(env: Any) -> _TopCamera:
    """The gate of a simulator, built where it is not yet.

    Raises:
        ConfigError: The installed gym-aloha is not built as this relies on.
    """
    if not hasattr(getattr(env, "_env", None), "physics"):
        raise ConfigError("the installed gym-aloha keeps its simulator in a way unknown here: use gym-aloha 0.1")
    return _TopCamera.behind(env._env.physics.render) or _TopCamera(env._env.physics)


def _want_frames(env: gymnasium.Env[Any, Any], wanted: bool) -> None:
    _gate_of(env.unwrapped).is_open = wanted


TRAITS = EnvironmentTraits(
    state_names=tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS),
    # The action is where the joints are to go, in the same units as the state. They sag a little below it: sent to
    # where they are, again and again, they would creep down; a servo keeps the last goal it was given.
    hold_action=lambda state, last_action: state if last_action is None else last_action,
    want_frames=_want_frames,
)


@register_environment("aloha")
def make_aloha(env_config: Any) -> list[Environment]:
    """One task; ``env_config`` is LeRobot's ``AlohaEnv``."""
    require_packages("aloha", "gym_aloha", what="--env.type=aloha")
    require_renderer()
    return [LeRobotEnvironment(task, TRAITS) for task in build_tasks(env_config)]
