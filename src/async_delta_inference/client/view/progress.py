"""The progress bar: steps done, time left, running success rate."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult

__all__ = ["ProgressBar"]


_OUTCOMES = {True: "success", False: "failure", None: "success not known"}


class ProgressBar(RunObserver):
    """Two bars: the steps of this episode, and the episodes of the run.

    Args:
        console: Where to draw; nothing moves where it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._console = console
        self._successes: list[bool | None] = []

    def run_started(self, environments: Sequence[Environment], n_episodes: int) -> None:  # noqa: D102
        self._total = len(environments) * n_episodes
        self._episodes = self._progress.add_task("episodes", total=self._total, note="")
        self._steps = self._progress.add_task("steps", total=None, note="")
        self._progress.start()

    def episode_started(self, environment: Environment, episode: int) -> None:  # noqa: D102
        name = f"{environment.task_group}/{environment.task_id} episode {episode}"
        self._progress.reset(self._steps, total=environment.max_episode_steps, description=name, note="")

    def stepped(self, environment: Environment, outcome: StepResult) -> None:  # noqa: D102
        self._progress.advance(self._steps)

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:  # noqa: D102
        self._successes.append(result.success)
        known = [success for success in self._successes if success is not None]
        rate = f"success {sum(known)}/{len(known)}" if known else "success n/a"
        self._progress.update(self._episodes, advance=1, note=rate)
        if not self._console.is_terminal:
            # A log file gets a line per episode instead of a bar.
            self._console.print(
                f"{environment.task_group}/{environment.task_id} episode {result.episode}: "
                f"{_OUTCOMES[result.success]} after {result.length} steps, "
                f"{result.stepping_s:.1f} s, {rate} ({len(self._successes)} of {self._total})"
            )

    def run_ended(self, result: EvaluationResult) -> None:  # noqa: D102
        self._progress.stop()
