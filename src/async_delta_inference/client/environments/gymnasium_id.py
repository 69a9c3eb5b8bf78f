"""``--env.type=gymnasium``: any environment that gymnasium can make. Importing this imports LeRobot.

LeRobot's configurations name environments of its own; this one names a gymnasium id, and is a choice of ``--env.type``
once this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from lerobot.configs import PolicyFeature
from lerobot.envs.configs import EnvConfig

from async_delta_inference.client.environments.gymnasium_layouts import StateFromInfo, in_lerobots_layout

__all__ = ["GymnasiumEnv"]

_REGISTERED_BY = {"ALE": "ale_py", "dm_control": "shimmy"}
"""Packages whose ids have another namespace."""


@EnvConfig.register_subclass("gymnasium")
@dataclass
class GymnasiumEnv(EnvConfig):  # type: ignore[misc]
    """A LeRobot environment configuration for a gymnasium id.

    An environment that observes ``pixels`` and ``agent_pos``, or an ``environment_state``, is taken as it is: that is
    LeRobot's layout. `in_lerobots_layout` has what becomes of others.
    """

    task: str | None = None
    """Gymnasium id, such as Pendulum-v1 or gym_pusht/PushT-v0; module:Id-v0 imports the module first."""
    fps: int = 30
    """Control steps per simulated second."""
    episode_length: int | None = None
    """Step limit; none: the id's own."""
    render_mode: str = "rgb_array"
    """Passed to the environment."""
    state_from_info: str | None = None
    """Where the info has the state of an environment that observes nothing but pictures; none: its own. A key, such as
    proprio/joint_pos, a path into dictionaries, all that begins with proprio, or several of these with commas."""
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
        task, namespace = str(self.task), str(self.task).partition("/")[0]
        if ":" not in task and "/" in task and task not in gymnasium.registry:
            # By LeRobot's convention the namespace is the package that registers it.
            task = f"{_REGISTERED_BY.get(namespace, namespace)}:{task}"

        def make() -> gymnasium.Env[Any, Any]:
            env = gymnasium.make(task, disable_env_checker=True, **self.gym_kwargs)
            if self.state_from_info:
                env = StateFromInfo(env, self.state_from_info)
            return in_lerobots_layout(env, str(self.task))

        return make
