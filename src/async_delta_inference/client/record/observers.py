"""`RunObserver`: what wants to know how a run goes (progress bar, videos, trajectories) and changes nothing in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.record.results import ChunkRecord, EpisodeResult, EvaluationResult

__all__ = ["Observers", "RunObserver"]


class RunObserver:
    """Every method does nothing; override those of interest. Called in the control loop's thread."""

    def run_started(self, environments: Sequence[Environment], n_episodes: int) -> None:
        """A run begins: ``n_episodes`` of each environment."""

    def episode_started(self, environment: Environment, episode: int) -> None:
        """The environment was reset."""

    def chunk_merged(self, chunk: ChunkRecord) -> None:
        """A chunk takes effect."""

    def acting(self, action: NDArray[np.float32], queued: int) -> None:
        """A step is about to be taken.

        Args:
            action: float32 (A,), to be executed.
            queued: Actions that waited at the step's beginning.
        """

    def stepped(self, environment: Environment, outcome: StepResult) -> None:
        """A step was taken."""

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:
        """An episode is complete."""

    def episode_kept(self, result: EvaluationResult) -> None:
        """And stands in the run's result, the last of its episodes."""

    def run_ended(self, result: EvaluationResult) -> None:
        """The run ended: completed, stopped or failed."""


class Observers(RunObserver):
    """Several observers as one."""

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = tuple(observers)

    def run_started(self, environments: Sequence[Environment], n_episodes: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.run_started(environments, n_episodes)

    def episode_started(self, environment: Environment, episode: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.episode_started(environment, episode)

    def chunk_merged(self, chunk: ChunkRecord) -> None:  # noqa: D102
        for observer in self._observers:
            observer.chunk_merged(chunk)

    def acting(self, action: NDArray[np.float32], queued: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.acting(action, queued)

    def stepped(self, environment: Environment, outcome: StepResult) -> None:  # noqa: D102
        for observer in self._observers:
            observer.stepped(environment, outcome)

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:  # noqa: D102
        for observer in self._observers:
            observer.episode_ended(environment, result)

    def episode_kept(self, result: EvaluationResult) -> None:  # noqa: D102
        for observer in self._observers:
            observer.episode_kept(result)

    def run_ended(self, result: EvaluationResult) -> None:  # noqa: D102
        # Each of them, also when one before it failed.
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.run_ended, result)
