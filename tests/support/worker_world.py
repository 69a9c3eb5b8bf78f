"""Environments for workers, which start without lerobot: what they see follows from the seed and the actions alone.

A worker learns of them as a user's does: unpickling the configuration imports this module, which registers them.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client import Environment, EpisodeSpec, StepResult, register_environment
from async_delta_inference.transport import Computation, FunctionPolicy, Observation, ObservationFeatures

FEATURES = ObservationFeatures(("x", "y"), {"camera": (4, 4, 3)})
STEPS = 12


@dataclass
class WorldConfig:
    """Of the environment type ``world``.

    Args:
        tasks: How many.
        does: ``<task> <episode>`` to what its simulator does in step 3: crash, hang, raise, once: crash the first
            time, or wait: until ``go`` is in ``folder``; what has happened is a file there.
        folder: See there.
        step_s: How long a step sleeps.
    """

    tasks: int = 1
    does: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()
    step_s: float = 0.0
    type: str = "world"


class World(Environment):
    def __init__(self, config: WorldConfig, task_id: int) -> None:
        self._config = config
        self.task_group, self.task_id, self.task_description = "world", task_id, "go"
        self.features, self.action_dim, self.max_episode_steps, self.fps = FEATURES, 2, STEPS, 50.0

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        self._spec, self._step = spec, 0
        assert spec.seed is not None
        self._state = np.random.default_rng((spec.seed, spec.task_id)).normal(size=2).astype(np.float32)

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        self._step += 1
        time.sleep(self._config.step_s)
        if self._step == 3:
            self._do(self._config.does.get(f"{self.task_id} {self._spec.episode}", ""))
        self._state = (0.9 * self._state + 0.1 * action).astype(np.float32)
        return StepResult(float(self._state[0]), False, False, bool(self._state[0] > 0))

    def state(self) -> NDArray[np.float32]:
        return self._state.copy()

    def write_observation(self, observation: Observation) -> None:
        observation.state[:] = self._state
        observation.images["camera"][:] = self._step

    def hold_action(self) -> NDArray[np.float32]:
        return np.zeros(2, np.float32)

    def video_frame(self) -> NDArray[np.uint8]:
        return np.zeros((16, 16, 3), np.uint8)

    def close(self) -> None:
        """Nothing to release."""

    def _do(self, deed: str) -> None:
        if deed == "once":
            mark = self._config.folder / f"crashed {self.task_id} {self._spec.episode}"
            deed = "" if mark.exists() else "crash"
            mark.touch()
        if deed == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if deed == "hang":
            signal.pause()
        while deed == "wait" and not (self._config.folder / "go").exists():
            time.sleep(0.01)
        if deed == "raise":
            raise ValueError("it broke")


@register_environment("world")
def make_world(config: Any) -> list[Environment]:
    return [World(config, task_id) for task_id in range(config.tasks)]


class Drift:
    """A policy whose actions follow from what it sees."""

    def __call__(self, observation: Observation) -> NDArray[np.float32]:
        return np.stack([observation.state + index for index in range(5)]).astype(np.float32)


class Telling(FunctionPolicy):
    """Says that it runs somewhere."""

    def __init__(self, device: str) -> None:
        super().__init__(Drift())
        self._device = device

    def computation(self) -> Computation:
        return {"device": self._device, "threads": 1}


def make_policy() -> Any:
    return Telling("cpu")


def make_policy_of_a_gpu() -> Any:
    return Telling("cuda:0")
