"""`LeRobotEnvironment`: any environment that LeRobot can build, as an `Environment`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.environments.construction import LeRobotTask
from async_delta_inference.client.environments.declared import Declared, example_of
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.frame_proof import FrameProof, prove_frames
from async_delta_inference.client.environments.guarded import simulator_errors
from async_delta_inference.client.environments.kept_contexts import keep_rendering_contexts
from async_delta_inference.client.environments.observation import (
    ENVIRONMENT_STATE_PART,
    LIBERO_STATE_NAMES,
    camera_images,
    is_libero,
    state_vector,
    write_image,
)
from async_delta_inference.client.environments.outcome import SUCCESS_KEYS, step_result
from async_delta_inference.client.environments.picture import as_picture
from async_delta_inference.client.environments.proof_cache import cached_proof, identity, keep_proof
from async_delta_inference.client.environments.unseen_frames import frames_unseen, has_skippable_frames
from async_delta_inference.errors import ConfigError, EpisodeError, FrameError
from async_delta_inference.transport import Observation, ObservationFeatures
from async_delta_inference.transport.messages import ENVIRONMENT_STATE_PREFIX

if TYPE_CHECKING:
    import gymnasium

__all__ = ["EnvironmentTraits", "HoldAction", "LeRobotEnvironment"]

logger = logging.getLogger(__name__)

HoldAction = Callable[[NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.float32]]
"""From the robot's state (S,) and the last executed action (A,), None before the first, to the action (A,) that holds
still."""


@dataclass(frozen=True)
class EnvironmentTraits:
    """What a registry entry knows about an environment beyond what LeRobot says.

    Args:
        state_names: One name per element of the robot's state; ``state_0``, ``state_1``, ... where None.
        hold_action: What a robot does while it has no action; None where nobody said.
        convert: From the raw observation of ``step`` to LeRobot's layout (``pixels`` with ``agent_pos`` or
            ``robot_state``, and ``environment_state``); None where it has that layout already.
        max_episode_steps: Step limit; the environment's own where None.
        want_frames: Told before every reset and step whether the frames of what follows will be looked at, for a
            simulator that can go on without rendering; None where it always renders.
        success_keys: Where its ``info``, or the ``final_info`` in it, may say whether the task is solved.
    """

    state_names: tuple[str, ...] | None = None
    hold_action: HoldAction | None = None
    convert: Callable[[Any], Mapping[str, Any]] | None = None
    max_episode_steps: int | None = None
    want_frames: Callable[[gymnasium.Env[Any, Any], bool], None] | None = None
    success_keys: tuple[str, ...] = SUCCESS_KEYS


class LeRobotEnvironment(Environment):
    """A gymnasium environment with LeRobot's observation layout, run as ``lerobot-eval`` runs it.

    Frames are rendered on demand where the traits or a subclass' `_want_frames` say how, and, once
    `render_on_demand` was called, where it has been proven that leaving them out changes nothing.

    Args:
        task: What LeRobot built.
        traits: What else is known about it.

    Raises:
        ConfigError: It cannot be served: no pixels, no state, an action that is not one vector, or no step limit.

    Attributes:
        success_keys: Where its info may say whether the task is solved; by the traits, unless somebody sets others.
        info_keys: What the info of the last step had, for whoever looks for such a key.
    """

    def __init__(self, task: LeRobotTask, traits: EnvironmentTraits | None = None) -> None:
        self._traits = traits or EnvironmentTraits()
        self._rebuild = task.rebuild
        self._configuration = task.configuration
        self._proof: FrameProof | None = FrameProof(False)
        self._env: gymnasium.Env[Any, Any] | None = task.env
        self._raw: Mapping[str, Any] | None = None
        self._state: NDArray[np.float32] | None = None
        self._frames_current = False
        self._last_action: NDArray[np.float32] | None = None
        self.success_keys = self._traits.success_keys
        self.info_keys: tuple[str, ...] = ()
        self.task_group = task.group
        self.task_id = task.index
        self.fps = task.fps
        self.task_description = _task_description(task.env)
        self.features = self._observation_features(task.env)
        self.action_dim = _action_dim(task.env, self.name)
        self.max_episode_steps = self._traits.max_episode_steps or _step_limit(task.env, self.name)

    @property
    def name(self) -> str:
        """Group and index, for messages."""
        return f"{self.task_group}/{self.task_id}"

    def render_on_demand(self) -> None:
        """From the next reset on, leave out the frames that nobody looks at, if it proves to change nothing.

        The proof is made by simulators of their own, in a minute at most for all but the slowest, and kept.
        """
        if self._traits.want_frames is None and type(self)._want_frames is LeRobotEnvironment._want_frames:
            self._proof = None

    @property
    def repeatable(self) -> bool | None:
        """Whether the same seed and actions give the same; None where nobody tried."""
        return None if self._proof is None else self._proof.repeatable

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:  # noqa: D102
        from lerobot.envs.utils import NEW_ROLLOUT_OPTION

        keep_rendering_contexts()  # Some import MuJoCo when they are first reset.

        if self._proof is None:
            self._proof = self._prove()
        if self._env is None:
            self._env = self._rebuild()
        self._last_action = None
        with self._simulator_errors("reset"), frames_unseen(self._skips and not render):
            self._want_frames(render, resetting=True)
            given: Any = self._env.reset(seed=spec.seed, options={NEW_ROLLOUT_OPTION: True})
        # Before gymnasium it was the observation alone, and a dictionary of two unpacks into its keys.
        if not isinstance(given, tuple) or len(given) != 2:
            raise EpisodeError(f"{self.name} gave a {type(given).__name__} in reset; needed are observation and info")
        self._take(given[0], render)
        self.task_description = _task_description(self._env)

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:  # noqa: D102
        env = self._running()
        with self._simulator_errors("step"), frames_unseen(self._skips and not render):
            self._want_frames(render, resetting=False)
            raw, reward, terminated, truncated, info = env.step(action)
        self._take(raw, render)
        self._last_action = action
        outcome = step_result(self.name, reward, terminated, truncated, info, self.success_keys)
        self.info_keys = tuple(map(str, info))
        return outcome

    def state(self) -> NDArray[np.float32]:  # noqa: D102
        return self._current_state().copy()

    def write_observation(self, observation: Observation) -> None:  # noqa: D102
        raw = self._observed()
        if not self._frames_current and self.features.images:
            raise EpisodeError(f"{self.name} was asked for frames that it was told not to render")
        rotate = is_libero(raw)
        for camera, image in camera_images(raw).items():
            write_image(self._picture(image, f"a frame from the camera {camera!r}"), observation.images[camera], rotate)
        np.copyto(observation.state, self._current_state())

    def hold_action(self) -> NDArray[np.float32]:  # noqa: D102
        if self._traits.hold_action is None:
            raise ConfigError(
                f"nobody said how {self.name} holds still: register it with a hold_action, or use --on_starvation=wait"
            )
        held = self._traits.hold_action(self.state()[: self.features.robot_dim], self._last_action)
        return np.asarray(held, np.float32).reshape(self.action_dim)

    def video_frame(self) -> NDArray[np.uint8]:  # noqa: D102
        env = self._running()
        with self._simulator_errors("render"):
            self._want_frames(True, resetting=False)
            frame: Any = env.render()
        if isinstance(frame, (list, tuple)) and frame:
            # Several cameras' at once, of which a video shows the first; or those since the last look.
            frame = frame[-1] if env.render_mode == "rgb_array_list" else frame[0]
        return np.ascontiguousarray(self._picture(frame, f"a video frame with render_mode {env.render_mode!r}"))

    def close(self) -> None:  # noqa: D102
        env, self._env, self._raw, self._state = self._env, None, None, None
        if env is not None:
            env.close()

    @property
    def _skips(self) -> bool:
        return self._proof is not None and self._proof.skips

    def _prove(self) -> FrameProof:
        """Whether frames may be left out; closes the simulator, since no two share a rendering context in peace."""
        from lerobot.envs.utils import NEW_ROLLOUT_OPTION

        if self._env is None:
            self._env = self._rebuild()
        if not has_skippable_frames(self._env):
            return FrameProof(False)
        key = identity(self._env, self._configuration)
        proof = cached_proof(key)
        if proof is None:
            self._close_for_the_trial()
            proof = prove_frames(self._rebuild, self._converted, {NEW_ROLLOUT_OPTION: True})
            keep_proof(key, proof)
        if proof.reason:
            logger.warning("%s: every frame is rendered: %s", self.name, proof.reason)
        return proof

    def _close_for_the_trial(self) -> None:
        """That it fails in that is a warning, as when it is closed at the end."""
        env, self._env = self._env, None
        try:
            with self._simulator_errors("close"):
                assert env is not None
                env.close()
        except EpisodeError as exc:
            logger.warning("%s", exc)

    def _want_frames(self, wanted: bool, *, resetting: bool) -> None:
        """Tell the simulator whether the next reset or step needs to render."""
        if self._traits.want_frames is not None:
            assert self._env is not None
            self._traits.want_frames(self._env, wanted)

    def _take(self, raw: Any, render: bool) -> None:
        converted = self._converted(raw)
        self._declared.check(converted, self.name, frames=render)
        self._raw = converted
        self._state = None
        self._frames_current = render

    def _current_state(self) -> NDArray[np.float32]:
        """The state vector of what was observed last, made once for all who ask."""
        if self._state is None:
            self._state = state_vector(self._observed())
        return self._state

    def _converted(self, raw: Any) -> Mapping[str, Any]:
        converted = self._traits.convert(raw) if self._traits.convert is not None else raw
        if not isinstance(converted, Mapping):
            raise ConfigError(
                f"{self.name} observes a {type(converted).__name__}, not a dictionary with 'pixels' and 'agent_pos': "
                "try --env.obs_type=pixels_agent_pos, or register it with a conversion"
            )
        return converted

    def _observed(self) -> Mapping[str, Any]:
        if self._raw is None:
            raise EpisodeError(f"{self.name} was never reset")
        return self._raw

    def _running(self) -> gymnasium.Env[Any, Any]:
        if self._env is None or self._raw is None:
            raise EpisodeError(f"{self.name} was never reset")
        return self._env

    def _picture(self, image: Any, what: str) -> NDArray[np.uint8]:
        try:
            return as_picture(image)
        except ValueError as exc:
            raise FrameError(f"{self.name} gave {what} {exc}") from exc

    def _observation_features(self, env: gymnasium.Env[Any, Any]) -> ObservationFeatures:
        example = self._converted(example_of(env.observation_space))
        self._declared = Declared.by(example, self.name)
        images = {camera: _shape(as_picture(image)) for camera, image in camera_images(example).items()}
        beside_dim = np.size(example.get(ENVIRONMENT_STATE_PART, ()))
        robot_dim = len(state_vector(example)) - beside_dim
        names = self._traits.state_names or (LIBERO_STATE_NAMES if is_libero(example) else None)
        names = names or tuple(f"state_{i}" for i in range(robot_dim))
        if len(names) != robot_dim:
            raise ConfigError(f"{self.name} has a state of {robot_dim} elements but {len(names)} names for them")
        return ObservationFeatures((*names, *(f"{ENVIRONMENT_STATE_PREFIX}{i}" for i in range(beside_dim))), images)

    def _simulator_errors(self, doing: str) -> AbstractContextManager[None]:
        return simulator_errors(self.name, doing)


def _shape(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    height, width, channels = image.shape
    return height, width, channels


def _action_dim(env: gymnasium.Env[Any, Any], name: str) -> int:
    from gymnasium.spaces import Box

    space = env.action_space
    if not isinstance(space, Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        raise ConfigError(f"{name} takes actions of the space {space}; needed is a vector of floats (a Box)")
    return space.shape[0]


def _step_limit(env: gymnasium.Env[Any, Any], name: str) -> int:
    limit = _attribute(env, "_max_episode_steps")
    if not limit:
        raise ConfigError(
            f"{name} has no step limit: give --env.episode_length where its type has that flag, register its gymnasium "
            "id with max_episode_steps, or the environment with traits that say it"
        )
    return int(limit)


def _task_description(env: gymnasium.Env[Any, Any]) -> str:
    """The instruction as ``lerobot-eval`` finds it: the description, else the task's name, else nothing."""
    for attribute in ("task_description", "task"):
        found = _attribute(env, attribute)
        if found is not None:
            return str(found)
    return ""


def _attribute(env: gymnasium.Env[Any, Any], name: str) -> Any:
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None
