"""An environment that records what is done to it, and whose observation tells which step it is at."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client import Environment, EpisodeSpec, StepResult
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport import Observation, ObservationFeatures

STUB_FEATURES = ObservationFeatures(("step", "episode"), {"camera": (4, 4, 3)})
UNEVENTFUL = StepResult(reward=0.0, terminated=False, truncated=False, success=False)
SOLVED = StepResult(reward=1.0, terminated=True, truncated=False, success=True)


class StubEnvironment(Environment):
    """State: [steps since reset, episodes so far].

    Args:
        max_episode_steps: Step limit.
        outcomes: What the steps give, counted from 1; nothing happens at the others.
        task_id: Index of the task.
        holds: Whether anybody said how it holds still.
    """

    def __init__(
        self,
        max_episode_steps: int = 30,
        outcomes: Mapping[int, StepResult] | None = None,
        task_id: int = 0,
        *,
        holds: bool = True,
    ) -> None:
        self.task_group, self.task_id, self.task_description = "stub", task_id, "do nothing"
        self.features = STUB_FEATURES
        self.action_dim = 2
        self.max_episode_steps = max_episode_steps
        self.fps = 200.0
        self.actions: list[list[NDArray[np.float32]]] = []
        self.rendered: list[list[bool]] = []
        self.seeds: list[int | None] = []
        self.closed = False
        self.resets_s: list[tuple[float, float]] = []
        """When each reset began and ended, of ``time.perf_counter()``."""
        self.steps_s: list[list[tuple[float, float]]] = []
        """The same of every step, episode by episode."""
        self._outcomes = outcomes or {}
        self._holds = holds
        self._step = 0

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        began_s = time.perf_counter()
        self.seeds.append(spec.seed)
        self.actions.append([])
        self.rendered.append([render])
        self.steps_s.append([])
        self._step = 0
        self.closed = False
        self.resets_s.append((began_s, time.perf_counter()))

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        began_s = time.perf_counter()
        self.actions[-1].append(np.array(action))
        self.rendered[-1].append(render)
        self._step += 1
        self.steps_s[-1].append((began_s, time.perf_counter()))
        return self._outcomes.get(self._step, UNEVENTFUL)

    def state(self) -> NDArray[np.float32]:
        return np.array([self._step, len(self.seeds) - 1], np.float32)

    def write_observation(self, observation: Observation) -> None:
        if not self.rendered[-1][-1]:
            raise EpisodeError("not rendered")
        observation.state[:] = self.state()
        observation.images["camera"][:] = self._step % 256

    def hold_action(self) -> NDArray[np.float32]:
        if not self._holds:
            raise ConfigError("nobody said how stub/0 holds still")
        return np.full(2, -1, np.float32)

    def video_frame(self) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), self._step % 256, np.uint8)

    def close(self) -> None:
        self.closed = True
