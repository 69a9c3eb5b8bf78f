"""A point that is to reach the middle of a square: a package of one file that adds an environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from async_delta_inference.client.environments import EnvironmentTraits, LeRobotEnvironment, build_tasks


class Point(gymnasium.Env[Any, Any]):
    """Moves by its action; observes where it is, and a picture of that."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = Dict(pixels=Box(0, 255, (64, 64, 3), np.uint8), agent_pos=Box(-1, 1, (2,), np.float32))
    action_space = Box(-0.1, 0.1, (2,), np.float32)
    task_description = "reach the middle"

    def __init__(self, render_mode: str = "rgb_array") -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.position = np.clip(self.position + action, -1, 1).astype(np.float32)
        is_success = bool(np.linalg.norm(self.position) < 0.1)
        return self._observe(), float(is_success), is_success, False, {"is_success": is_success}

    def render(self) -> Any:
        picture = np.zeros((64, 64, 3), np.uint8)
        row, column = ((self.position + 1) * 30).astype(int)
        picture[row : row + 4, column : column + 4] = 255
        return picture

    def _observe(self) -> dict[str, Any]:
        return {"pixels": self.render(), "agent_pos": self.position.copy()}


gymnasium.register("lerobot_env_point/Point-v0", Point, max_episode_steps=50)


@EnvConfig.register_subclass("point")
@dataclass
class PointConfig(EnvConfig):
    """What LeRobot knows of it: --env.type=point and the flags below."""

    task: str | None = "Point-v0"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    )
    package_name = "lerobot_env_point"
    gym_kwargs = {}


TRAITS = EnvironmentTraits(
    state_names=("x", "y"),
    # What it does while it has no action: it stays where it is.
    hold_action=lambda state, last_action: np.zeros(2, np.float32),
)


def make_point(config: PointConfig) -> list[LeRobotEnvironment]:
    """What LeRobot does not say; named as an entry point in pyproject.toml."""
    return [LeRobotEnvironment(task, TRAITS) for task in build_tasks(config)]
