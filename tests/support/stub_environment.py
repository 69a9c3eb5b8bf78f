"""An environment that records what is done to it, and whose observation tells which step it is at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client import Environment, StepResult
from async_delta_inference.errors import EpisodeError
from async_delta_inference.transport import Observation, ObservationFeatures

STUB_FEATURES = ObservationFeatures(("step", "episode"), {"camera": (4, 4, 3)})


class StubEnvironment(Environment):
    """State: [steps since reset, episodes so far]. Succeeds at step ``success_at`` of an episode."""

    def __init__(self, max_episode_steps: int = 30, success_at: int | None = None, task_id: int = 0) -> None:
        self.task_group, self.task_id, self.task_description = "stub", task_id, "do nothing"
        self.features = STUB_FEATURES
        self.action_dim = 2
        self.max_episode_steps = max_episode_steps
        self.fps = 200.0
        self.actions: list[list[NDArray[np.float32]]] = []
        self.rendered: list[list[bool]] = []
        self.seeds: list[int | None] = []
        self.closed = False
        self._success_at = success_at
        self._step = 0

    def reset(self, seed: int | None, *, render: bool = True) -> None:
        self.seeds.append(seed)
        self.actions.append([])
        self.rendered.append([render])
        self._step = 0

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        self.actions[-1].append(np.array(action))
        self.rendered[-1].append(render)
        self._step += 1
        success = self._step == self._success_at
        return StepResult(float(success), success, False, success)

    def state(self) -> NDArray[np.float32]:
        return np.array([self._step, len(self.seeds) - 1], np.float32)

    def write_observation(self, observation: Observation) -> None:
        if not self.rendered[-1][-1]:
            raise EpisodeError("not rendered")
        observation.state[:] = self.state()
        observation.images["camera"][:] = self._step % 256

    def hold_action(self) -> NDArray[np.float32]:
        return np.full(2, -1, np.float32)

    def video_frame(self) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), self._step % 256, np.uint8)

    def close(self) -> None:
        self.closed = True
