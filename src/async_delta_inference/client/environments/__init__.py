"""Simulated environments, by LeRobot's ``--env.type``. Importing this loads no simulator and no torch."""

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.environments.construction import LeRobotTask, build_tasks
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.lerobot_env import EnvironmentTraits, LeRobotEnvironment
from async_delta_inference.client.environments.plugins import known_environments
from async_delta_inference.client.environments.registry import (
    EnvironmentOptions,
    make_environments,
    register_environment,
)

__all__ = [
    "Environment",
    "EnvironmentOptions",
    "EnvironmentTraits",
    "EpisodeSpec",
    "LeRobotEnvironment",
    "LeRobotTask",
    "StepResult",
    "build_tasks",
    "known_environments",
    "make_environments",
    "register_environment",
]
