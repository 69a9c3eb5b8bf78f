"""What a run writes and shows by its flags: progress bar, videos, trajectories, and the files at its end."""

from __future__ import annotations

import logging
import sys

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.record.delays import DELAYS_NAME, write_recorded_delays
from async_delta_inference.client.record.eval_info import EVAL_INFO_NAME, VideoOf, write_eval_info
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.client.record.trajectories import TrajectoryWriter
from async_delta_inference.client.record.videos import VideoRecorder
from async_delta_inference.standard_streams import unfailing

__all__ = ["configured_observers"]

logger = logging.getLogger(__name__)


def configured_observers(config: SimClientConfig, folder: OutputFolder) -> list[RunObserver]:
    """The observers that a configuration asks for."""
    videos = VideoRecorder(folder, config.n_videos)
    observers: list[RunObserver] = [_EarlierRun(folder), videos, _UnknownSuccess()]
    if config.save_trajectories:
        observers.append(TrajectoryWriter(folder))
    if config.progress:
        from rich.console import Console

        from async_delta_inference.client.view.progress import ProgressBar

        observers.append(ProgressBar(Console(file=unfailing(sys.stderr))))
    observers.append(_RunFiles(folder, videos.path_of, config.debug_visualize_queue_size, config.plot_latency))
    return observers


class _EarlierRun(RunObserver):
    """The results of an earlier run in the same folder stay until there are some of this one. Goes before who writes.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._cleared = False

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:
        if not self._cleared:
            self._folder.clear()
        self._cleared = True


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


class _RunFiles(RunObserver):
    """Written anew after every episode: nothing that is complete is lost, however the run ends.

    Args:
        folder: Of the run.
        video_of: Where an episode's video is.
        queue_plot: Whether to draw the queue at the end.
        latency_plot: Whether to draw the latencies at the end.
    """

    def __init__(self, folder: OutputFolder, video_of: VideoOf, queue_plot: bool, latency_plot: bool) -> None:
        self._folder = folder
        self._video_of = video_of
        self._queue_plot = queue_plot
        self._latency_plot = latency_plot

    def episode_kept(self, result: EvaluationResult) -> None:
        self._folder.write(EVAL_INFO_NAME, lambda path: write_eval_info(path, result, self._video_of))
        self._folder.write(DELAYS_NAME, lambda path: write_recorded_delays(path, result))

    def run_ended(self, result: EvaluationResult) -> None:
        if not result.episodes:
            return
        self.episode_kept(result)  # With the time of the whole run.
        if self._queue_plot:
            from async_delta_inference.client.view.queue_plot import write_queue_plot

            self._folder.write("queue_size.png", lambda path: write_queue_plot(path, result))
        if self._latency_plot and len(result.latencies_s()):
            from async_delta_inference.client.view.latency_plot import write_latency_plot

            self._folder.write("latency.png", lambda path: write_latency_plot(path, result))
