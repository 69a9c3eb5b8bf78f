"""A simulator that draws from the process's generators gives the same episode whatever ran before."""

from __future__ import annotations

import random

import numpy as np
from control_run import Run
from numpy.typing import NDArray
from stub_environment import StubEnvironment

from async_delta_inference.client import EpisodeSpec, StepResult
from async_delta_inference.client.environments.global_randomness import global_generators_of
from async_delta_inference.client.run.repeatability import is_repeatable


class Drawing(StubEnvironment):
    """Its state is drawn from both global generators, at the reset and at every step."""

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        super().reset(spec, render=render)
        self._draw()

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        self._draw()
        return super().step(action, render=render)

    def state(self) -> NDArray[np.float32]:
        return self._drawn

    def _draw(self) -> None:
        self._drawn = np.array([random.random(), np.random.random()], np.float32)


def test_episodes_follow_from_their_specification(run: Run) -> None:
    told = []
    for before in (1, 2):
        random.seed(before)
        np.random.seed(before)
        run.environments = [Drawing()]
        told.append([episode.states.tobytes() for episode in run(n_episodes=2, seed=7, overwrite=True).episodes])
    assert told[0] == told[1]
    assert told[0][0] != told[0][1]  # another seed, another episode


def test_the_program_around_finds_its_own_generators() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    with global_generators_of(EpisodeSpec("stub", 0, 0, seed=7)):
        random.random()
        np.random.random(5)
    assert (random.random(), np.random.random()) == expected


def test_without_a_seed_nothing_is_set() -> None:
    random.seed(3)
    drawn = random.random()
    random.seed(3)
    with global_generators_of(EpisodeSpec("stub", 0, 0, seed=None)):
        assert random.random() == drawn


def test_such_a_simulator_is_repeatable() -> None:
    assert is_repeatable(lambda: [Drawing()], seed=7)
