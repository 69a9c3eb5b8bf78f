"""MetaWorld: fifty tabletop tasks, alone or by difficulty, rendering on demand."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.construction import build_tasks, require_packages
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.frame_gate import FrameGate
from async_delta_inference.client.environments.headless import require_renderer
from async_delta_inference.client.environments.lerobot_env import EnvironmentTraits, LeRobotEnvironment
from async_delta_inference.client.environments.registry import register_environment
from async_delta_inference.errors import ConfigError

GRIPPER_OPEN = -1.0


class MetaworldEnvironment(LeRobotEnvironment):
    """One MetaWorld task, run by LeRobot's own ``MetaworldEnv``."""

    _gate: _RenderGate | None = None

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:  # noqa: D102
        if self._env is None:
            self._env = self._rebuild()
        with self._simulator_errors("reset"):
            self._gate = _gate_of(self._env.unwrapped)
        super().reset(spec, render=render)

    def video_frame(self) -> NDArray[np.uint8]:
        """What the policy was shown where it was shown anything, else rendered now."""
        if self._frames_current:
            return np.ascontiguousarray(self._observed()["pixels"])
        return super().video_frame()

    def _want_frames(self, wanted: bool, *, resetting: bool) -> None:
        assert self._gate is not None
        self._gate.is_open, self._gate.saw_success = wanted, False

    def _take(self, raw: Any, render: bool) -> None:
        assert self._gate is not None
        super()._take(raw, render or self._gate.saw_success)


class _RenderGate(FrameGate):
    """Stands before the simulator's ``step`` and ``render``; renders once where a frame is wanted.

    LeRobot's ``step`` renders, and where the task is solved it resets at once, which renders again for nobody and loses
    the scene that a video ends with: so the frame of a solved task is always rendered.

    Args:
        simulator: MetaWorld's own environment, inside LeRobot's.
    """

    def __init__(self, simulator: Any) -> None:
        super().__init__()
        self.saw_success = False
        self._simulator = simulator
        self._step, self._render = simulator.step, simulator.render
        simulator.step, simulator.render = self.step, self.render

    def step(self, action: NDArray[np.float32]) -> Any:
        result = self._step(action)
        self.saw_success = bool(result[4].get("success", 0))
        self.is_open = self.is_open or self.saw_success
        return result

    def render(self) -> NDArray[np.uint8]:
        image = self.look("camera", (self._simulator.height, self._simulator.width, 3), self._render_in_own_context)
        self.is_open = False
        return image

    def _render_in_own_context(self) -> NDArray[np.uint8]:
        # Another environment's context may be current.
        if (viewer := self._simulator.mujoco_renderer.viewer) is not None:
            viewer.make_context_current()
        image: NDArray[np.uint8] = self._render()
        return image


def _gate_of(env: Any) -> _RenderGate:
    """The gate of a simulator, which is built where it is not yet.

    Raises:
        ConfigError: The installed LeRobot is not built as this relies on.
    """
    if not hasattr(env, "_ensure_env") or not hasattr(env, "_env"):
        raise ConfigError("the installed LeRobot's MetaworldEnv builds its simulator in a way unknown here: use 0.6.1")
    env._ensure_env()
    return _RenderGate.behind(env._env.render) or _RenderGate(env._env)


def _hold(state: NDArray[np.float32], last_action: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """No displacement, the gripper as it was last told."""
    return np.array([0, 0, 0, GRIPPER_OPEN if last_action is None else last_action[-1]], np.float32)


TRAITS = EnvironmentTraits(state_names=("hand_x", "hand_y", "hand_z", "gripper_opening"), hold_action=_hold)


@register_environment("metaworld")
def make_metaworld(env_config: Any) -> list[Environment]:
    """The tasks of one or more names or groups (easy, ...); ``env_config`` is LeRobot's ``MetaworldEnv``."""
    require_packages("metaworld", "metaworld", what="--env.type=metaworld")
    require_renderer()
    _check_names(env_config.task)
    return [MetaworldEnvironment(task, TRAITS) for task in build_tasks(env_config)]


def _check_names(tasks: str) -> None:
    from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS, TASK_DESCRIPTIONS

    for name in filter(None, (part.strip() for part in tasks.split(","))):
        bare = name.replace("metaworld-", "")
        if name not in DIFFICULTY_TO_TASKS and bare not in TASK_DESCRIPTIONS:
            close = get_close_matches(bare, TASK_DESCRIPTIONS, n=3)
            raise ConfigError(
                f"MetaWorld has no task {name!r}; groups are {', '.join(DIFFICULTY_TO_TASKS)}; "
                f"close names are {', '.join(close) or 'none'}"
            )
