"""``--env.type=gymnasium``: any environment that gymnasium can make. Importing this imports LeRobot.

LeRobot's configurations name environments of its own; this one names a gymnasium id, and is a choice of ``--env.type``
once this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.spaces import Box
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from lerobot.configs import PolicyFeature
from lerobot.envs.configs import EnvConfig

__all__ = ["GymnasiumEnv"]


@EnvConfig.register_subclass("gymnasium")
@dataclass
class GymnasiumEnv(EnvConfig):  # type: ignore[misc]
    """A LeRobot environment configuration for a gymnasium id.

    An environment that observes ``pixels`` and ``agent_pos`` is taken as it is. One that observes a plain vector gets
    that vector as its state and what it renders as its one camera.
    """

    task: str | None = None
    """Gymnasium id, such as Pendulum-v1 or gym_pusht/PushT-v0; module:Id-v0 imports the module first."""
    fps: int = 30
    """Control steps per simulated second."""
    episode_length: int | None = None
    """Step limit; none: the id's own."""
    render_mode: str = "rgb_array"
    """Passed to the environment."""
    make_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of ``gymnasium.make``."""
        limit = {} if self.episode_length is None else {"max_episode_steps": self.episode_length}
        return {"render_mode": self.render_mode, **limit, **self.make_kwargs}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """One task, in the form of ``lerobot.envs.make_env``, reset as LeRobot's own gymnasium environments are."""
        if not self.task:
            raise ValueError("--env.task must be a gymnasium id, such as Pendulum-v1")
        vector = gymnasium.vector.SyncVectorEnv(
            [self._maker()] * n_envs, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
        )
        return {self.task.rpartition(":")[2].replace("/", "_"): {0: vector}}

    def _maker(self) -> Callable[[], gymnasium.Env[Any, Any]]:
        task, package = str(self.task), str(self.task).partition("/")[0]
        if ":" not in task and "/" in task and task not in gymnasium.registry:
            # By LeRobot's convention the namespace is the package that registers it.
            task = f"{package}:{task}"

        def make() -> gymnasium.Env[Any, Any]:
            return _with_camera(gymnasium.make(task, disable_env_checker=True, **self.gym_kwargs))

        return make


def _with_camera(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    space = env.observation_space
    if not isinstance(space, Box) or len(space.shape) == 3:
        return env
    flat = Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype.type)
    flattened = TransformObservation(env, lambda observation: observation.reshape(-1), flat)
    return AddRenderObservation(flattened, render_only=False, render_key="pixels", obs_key="agent_pos")
