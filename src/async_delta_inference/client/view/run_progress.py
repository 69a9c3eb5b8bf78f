"""Progress of a run of many simulators: the whole, each of them, and when it will be over."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from async_delta_inference.client.record.events import (
    EpisodeEnded,
    EpisodeFailed,
    EpisodeGivenUp,
    EpisodeStarted,
    Event,
    RunEnded,
    RunStarted,
    ServerStarted,
    Stepped,
)
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.client.record.statistics import success_interval

__all__ = ["RunProgress"]


class RunProgress:
    """Call it with every event, and `stop` at the end.

    Args:
        console: Where to draw; a log file gets a line an episode.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._bars: dict[int, TaskID] = {}
        self._successes: list[bool] = []
        self._total = self._before = self._done = 0
        self._started_s = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show it."""
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, EpisodeStarted):
            self._bar(event.worker, event.spec.name, event.max_episode_steps)
        elif isinstance(event, Stepped) and event.worker in self._bars:
            self._progress.update(self._bars[event.worker], completed=event.steps)
        elif isinstance(event, EpisodeEnded):
            self._ended(event)
        elif isinstance(event, EpisodeFailed):
            self._say(f"{event.spec.name}: {event.reason}; it is run again")
        elif isinstance(event, EpisodeGivenUp):
            self._done += 1
            failures = event.given_up.failures
            self._say(f"{event.given_up.spec.name}: given up after {len(failures)} attempts: {failures[-1]}")
        elif isinstance(event, ServerStarted) and event.restarts:
            self._say(f"the server was started again ({event.restarts})")
        elif isinstance(event, RunEnded):
            self.stop()

    def take_up(self, episodes: Sequence[EpisodeResult]) -> None:
        """Count the successes that an earlier run has left."""
        self._successes += [episode.success for episode in episodes if episode.success is not None]

    def stop(self) -> None:
        """Leave the terminal as it was; idempotent."""
        self._progress.stop()

    def _start(self, event: RunStarted) -> None:
        self._total = len(event.episodes)
        self._before = self._done = self._total - len(event.missing)
        self._started_s = time.monotonic()
        self._whole = self._progress.add_task("episodes", total=self._total, completed=self._done, note="")
        if self._console.is_terminal:
            self._progress.start()

    def _bar(self, worker: int, name: str, steps: int) -> None:
        if worker not in self._bars:
            self._bars[worker] = self._progress.add_task("", note="")
        self._progress.reset(self._bars[worker], total=steps, description=f"{worker}: {name}", note="")

    def _ended(self, event: EpisodeEnded) -> None:
        result = event.result
        self._done += 1
        if result.success is not None:
            self._successes.append(result.success)
        note = f"{self._rate()}, {self._time_left()}"
        self._progress.update(self._whole, completed=self._done, note=note)
        if not self._console.is_terminal:
            outcome = {True: "success", False: "failure", None: "ended"}[result.success]
            self._say(
                f"{result.spec.name}: {outcome} after {result.length} steps, {result.stepping_s:.1f} s, {note} "
                f"({self._done} of {self._total})"
            )

    def _rate(self) -> str:
        if not self._successes:
            return "success n/a"
        low, high = success_interval(self._successes)
        return f"success {sum(self._successes)}/{len(self._successes)} ({100 * low:.0f}-{100 * high:.0f} %)"

    def _time_left(self) -> str:
        ran = self._done - self._before
        left_s = (time.monotonic() - self._started_s) / ran * (self._total - self._done)
        hours, seconds = divmod(round(left_s), 3600)
        return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d} left"

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
