"""What a run writes and shows by its flags: progress bar, videos, trajectories, and the files at its end."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.episode import EpisodeKey, EpisodeSpec
from async_delta_inference.client.record.dataset import DatasetRecorder
from async_delta_inference.client.record.delays import DELAYS_NAME, write_recorded_delays
from async_delta_inference.client.record.eval_info import EVAL_INFO_NAME, write_eval_info
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.result_store import ResultStore
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult, GivenUp
from async_delta_inference.client.record.run_file import (
    RUN_NAME,
    check_same_episodes,
    computed_otherwise,
    read_run,
    write_run,
)
from async_delta_inference.client.record.trajectories import write_trajectory
from async_delta_inference.client.record.videos import VideoRecorder
from async_delta_inference.standard_streams import unfailing
from async_delta_inference.transport import Computation

__all__ = ["RunRecord", "configured_observers"]

logger = logging.getLogger(__name__)


_SHARE_OF_TIME = 0.05
"""Of a run, at most, for writing its figures anew: with thousands of episodes that takes a while."""


class RunRecord:
    """What a run leaves in its folder: a line an episode at once, and the files that follow from those lines.

    Args:
        config: Flags.
        folder: Of the run; claimed before anything is written.
    """

    def __init__(self, config: SimClientConfig, folder: OutputFolder) -> None:
        self._config = config
        self._folder = folder
        self._store = ResultStore(folder)
        self._video_of = VideoRecorder(folder, config.n_videos).path_of
        self._described: dict[str, Any] = {}
        self._earlier_computations: list[Any] = []
        self._order: dict[EpisodeKey, int] = {}
        self._cleared = False
        self._next_refresh_s = 0.0
        self.earlier_delays: tuple[int, ...] = ()
        """The inference delays of the run that this one goes on with, where they were measured."""
        self.earlier_s = 0.0
        """Seconds that it took, as far as it wrote them down."""

    def begin(self, described: dict[str, Any]) -> None:
        """Say what is run, or take up the run that this one goes on with.

        Args:
            described: By `describe_run`.

        Raises:
            ConfigError: The folder's episodes would be others; names the flag that differs.
        """
        self._described = described
        if self._folder.holds_results and self._config.resume is not None:
            earlier = read_run(self._folder.path / RUN_NAME)
            check_same_episodes(earlier, described, self._folder.path)
            self._store.load()
            self._cleared = True
            self.earlier_delays = tuple(map(int, earlier.get("inference_delay_steps") or ()))
            with suppress(OSError, ValueError, LookupError, TypeError):
                self.earlier_s = float(
                    json.loads((self._folder.path / EVAL_INFO_NAME).read_text())["overall"]["eval_s"]
                )
            described["inference_delay_steps"] = list(self.earlier_delays)
            said = earlier.get("computation")
            described["computation"] = self._earlier_computations = said if isinstance(said, list) else []
        self._describe()

    @property
    def described(self) -> dict[str, Any]:
        """What is run, as ``run.yaml`` has it."""
        return self._described

    def note_delays(self, delays: tuple[int, ...]) -> None:
        """The inference delays of the run are known."""
        self._described["inference_delay_steps"] = list(delays)
        self._describe()

    def note_computations(self, found: Sequence[Computation]) -> None:
        """How the run's servers say that they compute, all ways of them.

        Those of the run that this one goes on with stay, and one line says what is another now.
        """
        before = self._described.get("computation") or []
        new = [dict(computation) for computation in found if computation not in before]
        if not new:
            return
        if note := computed_otherwise(self._earlier_computations, new[-1]):
            logger.warning("%s", note)
        self._described["computation"] = [*before, *new]
        self._describe()

    def plan(self, specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        """The episodes that are to be, in order; returns those that have no result yet."""
        self._order = {spec.key: position for position, spec in enumerate(specs)}
        return [spec for spec in specs if spec.key not in self._store.episodes]

    def restart(self) -> None:
        """What was kept is to be run once more."""
        self._store = ResultStore(self._folder)

    def position(self, result: EpisodeResult) -> int:
        """Of an episode among all that are to be; what nobody planned comes last."""
        return self._order.get(result.spec.key, len(self._order))

    def keep(self, result: EpisodeResult) -> None:
        """An episode is complete: from here on it is not lost. Its line comes last, so that what has one has all."""
        self.clear_earlier()
        if self._config.save_trajectories:
            write_trajectory(self._folder, self.position(result), result)
        self._store.keep(result)

    def give_up(self, given_up: GivenUp) -> None:
        """An episode has no result."""
        self.clear_earlier()
        self._store.give_up(given_up)

    def fold(self, result: EvaluationResult) -> None:
        """Put what there is into the result of the whole, in the order of the plan."""
        result.episodes = sorted(self._store.episodes.values(), key=self.position)
        result.given_up = [self._store.given_up[key] for key in sorted(self._store.given_up)]

    def refresh(self, result: EvaluationResult) -> None:
        """Write the figures anew, unless they were a moment ago: `results.jsonl` has what they lack."""
        if time.monotonic() >= self._next_refresh_s:
            self._write_figures(result)

    def end(self, result: EvaluationResult) -> None:
        """The run ended, however it did."""
        if not result.episodes and not result.given_up:
            return
        self._store.flush()
        self._write_figures(result)
        if self._config.debug_visualize_queue_size and result.episodes:
            from async_delta_inference.client.view.queue_plot import write_queue_plot

            self._folder.write("queue_size.png", lambda path: write_queue_plot(path, result))
        if self._config.plot_latency and len(result.latencies_s()):
            from async_delta_inference.client.view.latency_plot import write_latency_plot

            self._folder.write("latency.png", lambda path: write_latency_plot(path, result))

    def _write_figures(self, result: EvaluationResult) -> None:
        started_s = time.monotonic()
        described = self._folder.path / RUN_NAME
        if described in self._folder.unwritten or not described.exists():
            self._describe()
        self._folder.write(EVAL_INFO_NAME, lambda path: write_eval_info(path, result, self._video_of))
        self._folder.write(DELAYS_NAME, lambda path: write_recorded_delays(path, result))
        now_s = time.monotonic()
        self._next_refresh_s = now_s + (now_s - started_s) / _SHARE_OF_TIME

    def clear_earlier(self) -> None:
        """The results of an earlier run stay until there are some of this one."""
        if not self._cleared:
            self._folder.clear()
            self._cleared = True
            if self._folder.holds_results:
                self._describe()

    def _describe(self) -> None:
        if self._cleared or not self._folder.holds_results:
            self._folder.write(RUN_NAME, lambda path: write_run(path, self._described))


def configured_observers(config: SimClientConfig, folder: OutputFolder, record: RunRecord) -> list[RunObserver]:
    """The observers that a configuration asks for, where one simulator runs in this process."""
    observers: list[RunObserver] = [
        _EarlierRun(record),
        VideoRecorder(folder, config.n_videos),
        _Record(record),
        _UnknownSuccess(),
    ]
    if config.display_data:
        from async_delta_inference.client.view.live import LiveView, rerun_sink

        observers.append(LiveView(rerun_sink(config.display_ip, config.display_port, config.display_save)))
    if config.record_dataset is not None:
        observers.append(DatasetRecorder(folder, config.record_dataset))
    if config.progress:
        from rich.console import Console

        from async_delta_inference.client.view.progress import ProgressBar

        observers.append(ProgressBar(Console(file=unfailing(sys.stderr))))
    return observers


class _EarlierRun(RunObserver):
    """Goes before whoever writes something of an episode."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:
        self._record.clear_earlier()


class _Record(RunObserver):
    """Goes before whoever tells a person of an episode: what is told is on the disk."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:
        self._record.keep(result)

    def episode_kept(self, result: EvaluationResult) -> None:
        self._record.refresh(result)

    def run_ended(self, result: EvaluationResult) -> None:
        self._record.end(result)


class _UnknownSuccess(RunObserver):
    """Says once that an environment does not say whether its task is solved, and what it says instead."""

    def __init__(self) -> None:
        self._said = False

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:
        if result.success is not None or self._said:
            return
        self._said = True
        keys = ", ".join(getattr(environment, "info_keys", ())) or "nothing"
        logger.warning(
            "%s/%s does not say whether an episode succeeded: no success rate is known. Its info has %s; --success_key "
            "names one that says it",
            environment.task_group,
            environment.task_id,
            keys,
        )
