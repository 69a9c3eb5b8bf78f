"""Gymnasium environments that observe in a layout of their own, in LeRobot's: ``pixels`` and ``agent_pos``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import FlattenObservation, TransformObservation
from numpy.typing import NDArray

from async_delta_inference.client.environments.observation import ENVIRONMENT_STATE_PART, SINGLE_CAMERA
from async_delta_inference.client.environments.picture import as_picture
from async_delta_inference.client.environments.unseen_frames import seen_or_last

__all__ = ["PicturesAndVectors", "RenderedCamera", "StateFromInfo", "in_lerobots_layout"]


def in_lerobots_layout(env: gymnasium.Env[Any, Any], name: str) -> gymnasium.Env[Any, Any]:
    """The environment, in a wrapper where it needs one.

    Vectors, alone or in a dictionary however deep, become the state, and what is rendered the one camera. Where there
    are pictures among them, these are the cameras. What is in LeRobot's layout, or in none that is known here, is left
    as it is.

    Args:
        env: Any.
        name: For messages.

    Raises:
        ValueError: It observes no picture, and renders none.
    """
    space = env.observation_space
    if isinstance(space, Dict):
        return _dictionary_in_lerobots_layout(env, space, name)
    if not isinstance(space, Box) or len(space.shape) == 3:
        return env
    flat = Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype.type)
    return RenderedCamera(TransformObservation(env, lambda observation: observation.reshape(-1), flat), name)


def _dictionary_in_lerobots_layout(env: gymnasium.Env[Any, Any], space: Dict, name: str) -> gymnasium.Env[Any, Any]:
    if ENVIRONMENT_STATE_PART in space.spaces or {"agent_pos", "pixels"} <= space.spaces.keys():
        return env
    if "agent_pos" in space.spaces:
        return RenderedCamera(env, name)
    leaves = dict(_leaves(space))
    if not all(isinstance(leaf, Box) for leaf in leaves.values()):
        return env
    pictures = sum(_is_picture(path, leaf) for path, leaf in leaves.items())
    if pictures == 0:
        # A goal's dictionary, say: what it observes, what it has reached and what it is to reach, one after the other.
        return RenderedCamera(FlattenObservation(env), name)
    return PicturesAndVectors(env) if pictures < len(leaves) else env


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is in dictionaries in dictionaries, by its path, in the order of the names."""
    if not isinstance(tree, (Mapping, Dict)):
        yield path, tree
        return
    for key in sorted(tree, key=str):
        yield from _leaves(tree[key], f"{path}/{key}" if path else str(key))


class PicturesAndVectors(gymnasium.ObservationWrapper[Any, Any, Any]):
    """An environment that observes pictures and vectors under names of its own, in dictionaries however deep.

    The pictures are its cameras, called after their paths, and the vectors, in the order of their paths, its state.

    Args:
        env: Observes a dictionary of boxes.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        leaves: dict[str, Any] = dict(_leaves(env.observation_space))
        self._cameras = {path: _camera(path) for path, leaf in leaves.items() if _is_picture(path, leaf)}
        vectors = [leaf for path, leaf in leaves.items() if path not in self._cameras]
        self.observation_space = Dict(
            pixels=Dict({camera: leaves[path] for path, camera in self._cameras.items()}),
            agent_pos=Box(-np.inf, np.inf, (sum(int(np.prod(leaf.shape)) for leaf in vectors),), np.float32),
        )

    def observation(self, observation: Any) -> dict[str, Any]:
        """The pictures by camera, and the vectors one after the other."""
        leaves = dict(_leaves(observation))
        pictures = {camera: leaves.pop(path) for path, camera in self._cameras.items()}
        return {"pixels": pictures, "agent_pos": _joined(leaves.values())}


def _is_picture(path: str, space: Any) -> bool:
    return len(space.shape) == 3 or path.partition("/")[0] == "pixels"


def _camera(path: str) -> str:
    return SINGLE_CAMERA if path == "pixels" else path.removeprefix("pixels/").replace("/", "_")


def _joined(vectors: Any) -> NDArray[np.float32]:
    return np.concatenate([np.asarray(vector, np.float32).reshape(-1) for vector in vectors])


class StateFromInfo(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that observes pictures, with the state that its info has beside them.

    Args:
        env: Whose observation is a picture, or has ``pixels``.
        names: Of the info: keys, paths into dictionaries, or what keys begin with before a slash; several with commas.

    Raises:
        ValueError: Its info has no such vector.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], names: str) -> None:
        super().__init__(env)
        _, info = env.reset(seed=0)
        known = dict(_leaves(info))
        self._paths = [path for name in names.split(",") for path in _under(name.strip(), known)]
        vectors = [np.asarray(known[path]) for path in self._paths]
        if not vectors or any(vector.dtype.kind not in "biuf" or vector.ndim > 1 for vector in vectors):
            raise ValueError(
                f"--env.state_from_info={names}: its info has {', '.join(known) or 'nothing'}, or no vector"
            )
        state = Box(-np.inf, np.inf, (sum(vector.size for vector in vectors),), np.float32)
        self.observation_space = Dict(pixels=self._pixels(env.observation_space), agent_pos=state)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: D102
        observation, info = self.env.reset(seed=seed, options=options)
        return self._beside(observation, info), info

    def step(self, action: Any) -> Any:  # noqa: D102
        observation, *rest, info = self.env.step(action)
        return self._beside(observation, info), *rest, info

    def _beside(self, observation: Any, info: Any) -> dict[str, Any]:
        known = dict(_leaves(info))
        return {"pixels": self._pixels(observation), "agent_pos": _joined(known[path] for path in self._paths)}

    def _pixels(self, observation: Any) -> Any:
        is_named = isinstance(observation, (Mapping, Dict)) and "pixels" in observation.keys()  # noqa: SIM118
        return observation["pixels"] if is_named else observation


def _under(name: str, known: Mapping[str, Any]) -> list[str]:
    return [path for path in known if path == name or path.startswith(f"{name}/")]


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
