"""Gymnasium environments as users have them, each odd in one way: `odd_gym/<Name>-v0`.

They observe 16x16x3 pixels and a state of 2, act with 2 numbers, last 6 steps, and are served by `evaluate_odd`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from async_delta_inference.client import EvaluationResult, SimClient, SimClientConfig
from async_delta_inference.client.environments.gymnasium_id import GymnasiumEnv
from async_delta_inference.transport.testing.scripted import ScriptedTransport, timestep_policy

STEPS = 6
PIXELS = Box(0, 255, (16, 16, 3), np.uint8)
STATE = Box(-10, 10, (2,), np.float32)


class Plain(gymnasium.Env[Any, Any]):
    """Says at every step whether it succeeded, which it did not."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    observation_space: Any = Dict(pixels=PIXELS, agent_pos=STATE)
    action_space: Any = Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.t = 0

    def observe(self) -> Any:
        return {"pixels": self.picture(), "agent_pos": np.array([self.t, 0], np.float32)}

    def picture(self) -> Any:
        return np.full((16, 16, 3), self.t, np.uint8)

    def info(self) -> Any:
        return {"is_success": False}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.observe(), 0.5, False, False, self.info()

    def render(self) -> Any:
        return self.picture()


ODD: dict[str, type[Plain]] = {"Plain": Plain}


def odd(name: str, class_: type[Plain] | None = None, **members: Any) -> str:
    """A Plain environment with other members, registered; its id.

    Args:
        name: Of the environment, without a version.
        class_: The environment instead.
        members: Attributes and methods that differ.
    """
    ODD[name] = class_ or type(name, (Plain,), members)
    gymnasium.register(f"odd_gym/{name}-v0", ODD[name], max_episode_steps=STEPS, disable_env_checker=True)
    return f"odd_gym/{name}-v0"


def saying(info: Callable[[bool], Any]) -> dict[str, Any]:
    """Members of an environment whose info says what a function makes of whether it is solved, as it is at step 4."""

    def step(self: Plain, action: Any) -> Any:
        observation, *_ = Plain.step(self, action)
        return observation, 1.0, self.t >= 4, False, info(self.t >= 4)

    return {"step": step}


odd("Plain")


def evaluate_odd(task: str, folder: Path, **flags: Any) -> tuple[SimClient, EvaluationResult]:
    """One synchronous episode of an odd environment in the simulated clock, with actions of two numbers."""
    fixed = {"n_episodes": 1, "actions_per_chunk": 5, "clock": "simulated", "inference_delay": "0", "progress": False}
    config = SimClientConfig(
        env=GymnasiumEnv(task=task), server_address="inproc://unused", output_dir=folder, **(fixed | flags)
    )
    transport = ScriptedTransport(timestep_policy(rows=5), 0, config.transport_options())
    client = SimClient(config, transport=transport)
    return client, client.run()
