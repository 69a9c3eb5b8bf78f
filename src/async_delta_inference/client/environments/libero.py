"""LIBERO: all suites, headless, offline, rendering on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.construction import LeRobotTask, build_tasks
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.lerobot_env import EnvironmentTraits, LeRobotEnvironment
from async_delta_inference.client.environments.libero_cameras import LiberoFrameGate
from async_delta_inference.client.environments.libero_contexts import make_current
from async_delta_inference.client.environments.libero_setup import prepare_libero
from async_delta_inference.client.environments.libero_simulator import LeanSimulator, lean_simulators
from async_delta_inference.client.environments.registry import register_environment
from async_delta_inference.errors import ConfigError, EpisodeError

GRIPPER_OPEN = -1.0
_RELIED_ON = (
    "_ensure_env",
    "_env",
    "_init_states",
    "init_state_id",
    "num_steps_wait",
    "camera_name",
    "camera_name_mapping",
)


class LiberoEnvironment(LeRobotEnvironment):
    """One task of a LIBERO suite, run by LeRobot's own ``LiberoEnv``.

    Args:
        task: What LeRobot built.
        absolute: Whether actions are poses to go to (``--env.control_mode=absolute``) instead of displacements.
    """

    def __init__(self, task: LeRobotTask, *, absolute: bool = False) -> None:
        super().__init__(task, EnvironmentTraits(hold_action=_hold_pose if absolute else _hold_displacement))
        self._libero: Any = task.env.unwrapped
        if missing := [name for name in _RELIED_ON if not hasattr(self._libero, name)]:
            raise ConfigError(f"the installed LeRobot's LiberoEnv lacks {', '.join(missing)}: use lerobot 0.6.1")
        self._rebuild = lambda: task.env
        self._gate = LiberoFrameGate()

    def episode(self, episode: int, seed: int | None) -> EpisodeSpec:  # noqa: D102
        states = self._libero._init_states
        return replace(super().episode(episode, seed), init_state_id=None if states is None else episode % len(states))

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:  # noqa: D102
        # LeRobot counts its resets and takes the next state; here the specification says which.
        self._libero.init_state_id = spec.init_state_id or 0
        with self._simulator_errors("reset"):
            self._simulator().begin_episode(spec.episode)
        self._gate.expect_reset(render, self._libero.num_steps_wait)
        super().reset(spec, render=render)

    def video_frame(self) -> NDArray[np.uint8]:
        """The first camera, upright. What the policy was shown where it was shown anything, else rendered now."""
        self._running()
        observable = self._libero.camera_name[0]
        if self._frames_current:
            image = self._observed()["pixels"][self._libero.camera_name_mapping[observable]]
        else:
            image = self._render_now(observable.removesuffix("_image"))
        return np.ascontiguousarray(image[::-1, ::-1])

    def _simulator(self) -> LeanSimulator:
        """Inside LIBERO's wrapper, inside LeRobot's; built where it is not yet."""
        if self._libero._env is None:
            self._gate.expect_reset(False, 0)
            with lean_simulators(self._gate):
                self._libero._ensure_env()
        simulator: LeanSimulator = self._libero._env.env
        return simulator

    def _render_now(self, camera: str) -> NDArray[np.uint8]:
        sim = self._libero._env.sim
        with self._simulator_errors("render"):
            make_current(sim._render_context_offscreen)
            image: NDArray[np.uint8] = sim.render(
                camera_name=camera, width=self._libero.observation_width, height=self._libero.observation_height
            )
        return image

    def _want_frames(self, wanted: bool, *, resetting: bool) -> None:
        if not resetting:
            self._gate.expect_step(wanted)

    def _take(self, raw: Any, render: bool) -> None:
        if render and not self._gate.fresh:
            raise EpisodeError(f"{self.name}: a camera was not sampled when its frame was wanted")
        super()._take(raw, render)


def _hold_displacement(state: NDArray[np.float32], last_action: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """No displacement, the gripper as it was last told."""
    gripper = GRIPPER_OPEN if last_action is None else last_action[-1]
    return np.array([0, 0, 0, 0, 0, 0, gripper], np.float32)


def _hold_pose(state: NDArray[np.float32], last_action: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The pose it was last sent to, before that the one it is in."""
    return np.array([*state[:6], GRIPPER_OPEN], np.float32) if last_action is None else last_action


@register_environment("libero")
@register_environment("libero_plus")
def make_libero(env_config: Any) -> list[Environment]:
    """The tasks of one or more suites; ``env_config`` is LeRobot's ``LiberoEnv``."""
    prepare_libero()
    absolute = env_config.control_mode == "absolute"
    return [LiberoEnvironment(task, absolute=absolute) for task in build_tasks(env_config)]
