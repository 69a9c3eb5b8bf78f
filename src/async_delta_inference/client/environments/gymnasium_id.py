"""``--env.type=gymnasium``: any environment that gymnasium can make. Importing this imports LeRobot.

LeRobot's configurations name environments of its own; this one names a gymnasium id, and is a choice of ``--env.type``
once this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import FlattenObservation, TransformObservation
from lerobot.configs import PolicyFeature
from lerobot.envs.configs import EnvConfig

from async_delta_inference.client.environments.picture import as_picture
from async_delta_inference.client.environments.unseen_frames import seen_or_last

__all__ = ["GymnasiumEnv", "RenderedCamera", "StateFromInfo"]

_REGISTERED_BY = {"ALE": "ale_py", "dm_control": "shimmy"}
"""Packages whose ids have another namespace."""


@EnvConfig.register_subclass("gymnasium")
@dataclass
class GymnasiumEnv(EnvConfig):  # type: ignore[misc]
    """A LeRobot environment configuration for a gymnasium id.

    An environment that observes ``pixels`` and ``agent_pos`` is taken as it is. One that observes vectors, alone or in
    a dictionary, gets them as its state and what it renders as its one camera.
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
    """Key of the info that has the state of an environment which observes nothing but a picture; none: its own."""
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
            return _with_camera(env, str(self.task))

        return make


class StateFromInfo(gymnasium.ObservationWrapper[Any, Any, Any]):
    """An environment that observes one picture, with the state that its info has beside it.

    Args:
        env: Whose observation is the picture.
        key: Of its info.

    Raises:
        ValueError: Its info has no such vector.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], key: str) -> None:
        super().__init__(env)
        self._key = key
        _, info = env.reset(seed=0)
        state = np.asarray(info.get(key, None))
        if state.dtype.kind not in "iuf" or state.ndim != 1:
            raise ValueError(f"--env.state_from_info={key}: its info has {', '.join(info) or 'nothing'}, or no vector")
        vector = Box(-np.inf, np.inf, state.shape, state.dtype.type)
        self.observation_space = Dict(pixels=env.observation_space, agent_pos=vector)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: D102
        picture, info = self.env.reset(seed=seed, options=options)
        return {"pixels": picture, "agent_pos": info[self._key]}, info

    def step(self, action: Any) -> Any:  # noqa: D102
        picture, *rest, info = self.env.step(action)
        return {"pixels": picture, "agent_pos": info[self._key]}, *rest, info


class RenderedCamera(gymnasium.ObservationWrapper[Any, Any, Any]):
    """An environment that observes no pixels, with what it renders as its one camera.

    Args:
        env: Observes a vector, or a dictionary with ``agent_pos``.
        name: For messages.

    Raises:
        ValueError: It renders no picture.
    """

    renders_for_observation = True

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        # Seeded: gymnasium's MuJoCo cameras look, for good, at where the robot is when the first picture is taken.
        env.reset(seed=0)
        modes = ", ".join(env.metadata.get("render_modes", [])) or "none"
        try:
            picture = as_picture(env.render())
        except Exception as exc:
            raise ValueError(
                f"{name} renders no picture with render_mode {env.render_mode!r} (it knows {modes}), and a policy "
                f"needs one: {str(exc) or type(exc).__name__}"
            ) from exc
        space = env.observation_space
        state = space["agent_pos"] if isinstance(space, Dict) else space
        self._last = picture
        self.observation_space = Dict(pixels=Box(0, 255, picture.shape, np.uint8), agent_pos=state)

    def observation(self, observation: Any) -> dict[str, Any]:
        """The state that it observes, and the picture."""
        state = observation["agent_pos"] if isinstance(observation, Mapping) else observation
        self._last = seen_or_last(self._last, lambda: as_picture(self.env.render()))
        return {"pixels": self._last, "agent_pos": state}


def _with_camera(env: gymnasium.Env[Any, Any], name: str) -> gymnasium.Env[Any, Any]:
    space = env.observation_space
    if isinstance(space, Dict) and "agent_pos" not in space.spaces and _is_flat(space):
        # A goal's dictionary, say: what it observes, what it has reached and what it is to reach, one after the other.
        return RenderedCamera(FlattenObservation(env), name)
    if isinstance(space, Dict) and "agent_pos" in space.spaces and "pixels" not in space.spaces:
        return RenderedCamera(env, name)
    if not isinstance(space, Box) or len(space.shape) == 3:
        return env
    flat = Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype.type)
    return RenderedCamera(TransformObservation(env, lambda observation: observation.reshape(-1), flat), name)


def _is_flat(space: Dict) -> bool:
    """Whether there is nothing but vectors in it, however deep."""
    return all(
        _is_flat(inner) if isinstance(inner, Dict) else isinstance(inner, Box) and len(inner.shape) < 3
        for inner in space.spaces.values()
    )
