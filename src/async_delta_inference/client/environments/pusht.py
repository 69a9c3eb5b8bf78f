"""PushT: push a T-shaped block onto its target. The worked example of adding an environment."""

from __future__ import annotations

from typing import Any

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.construction import build_tasks, require_packages
from async_delta_inference.client.environments.lerobot_env import EnvironmentTraits, LeRobotEnvironment
from async_delta_inference.client.environments.registry import register_environment

TRAITS = EnvironmentTraits(
    state_names=("agent_x", "agent_y"),
    # The action is the position that the agent is to go to, in the same pixels as the state.
    hold_action=lambda state, _last_action: state,
)


@register_environment("pusht")
def make_pusht(env_config: Any) -> list[Environment]:
    """One task; ``env_config`` is LeRobot's ``PushtEnv``."""
    require_packages("pusht", "gym_pusht", what="--env.type=pusht")
    return [LeRobotEnvironment(task, TRAITS) for task in build_tasks(env_config)]
