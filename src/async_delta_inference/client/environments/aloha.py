"""Aloha: two arms that insert a peg or hand over a cube."""

from __future__ import annotations

from typing import Any

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.construction import build_tasks, require_packages
from async_delta_inference.client.environments.headless import prepare_rendering
from async_delta_inference.client.environments.lerobot_env import EnvironmentTraits, LeRobotEnvironment
from async_delta_inference.client.environments.registry import register_environment

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")

TRAITS = EnvironmentTraits(
    state_names=tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS),
    # The action is where the joints are to go, in the same units as the state, grippers normalized alike.
    hold_action=lambda state, _last_action: state,
)


@register_environment("aloha")
def make_aloha(env_config: Any) -> list[Environment]:
    """One task; ``env_config`` is LeRobot's ``AlohaEnv``."""
    require_packages("aloha", "gym_aloha", what="--env.type=aloha")
    prepare_rendering()
    return [LeRobotEnvironment(task, TRAITS) for task in build_tasks(env_config)]
