"""What a run writes and shows by its flags: progress bar, videos, trajectories, and the files at its end."""

from __future__ import annotations

from pathlib import Path

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.record.delays import DELAYS_NAME, write_recorded_delays
from async_delta_inference.client.record.eval_info import VideoOf, write_eval_info
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.results import EvaluationResult
from async_delta_inference.client.record.trajectories import TrajectoryWriter
from async_delta_inference.client.record.videos import VideoRecorder

__all__ = ["configured_observers"]


def configured_observers(config: SimClientConfig, output_dir: Path) -> list[RunObserver]:
    """The observers that a configuration asks for."""
    videos = VideoRecorder(output_dir / "videos", config.n_videos)
    observers: list[RunObserver] = [videos]
    if config.save_trajectories:
        observers.append(TrajectoryWriter(output_dir / "trajectories"))
    if config.progress:
        from rich.console import Console

        from async_delta_inference.client.view.progress import ProgressBar

        observers.append(ProgressBar(Console(stderr=True)))
    observers.append(_RunFiles(output_dir, videos.path_of, config.debug_visualize_queue_size, config.plot_latency))
    return observers


class _RunFiles(RunObserver):
    """Also when the run was interrupted or failed: the episodes that were completed are not lost."""

    def __init__(self, folder: Path, video_of: VideoOf, queue_plot: bool, latency_plot: bool) -> None:
        self._folder = folder
        self._video_of = video_of
        self._queue_plot = queue_plot
        self._latency_plot = latency_plot

    def run_ended(self, result: EvaluationResult) -> None:
        if not result.episodes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_eval_info(self._folder / "eval_info.json", result, self._video_of)
        write_recorded_delays(self._folder / DELAYS_NAME, result)
        if self._queue_plot:
            from async_delta_inference.client.view.queue_plot import write_queue_plot

            write_queue_plot(self._folder / "queue_size.png", result)
        if self._latency_plot and len(result.latencies_s()):
            from async_delta_inference.client.view.latency_plot import write_latency_plot

            write_latency_plot(self._folder / "latency.png", result)
