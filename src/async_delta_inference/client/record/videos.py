"""``--n_videos``: the first episodes of each task as videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.errors import FrameError

__all__ = ["VideoRecorder"]


class VideoRecorder(RunObserver):
    """Writes ``videos/<group>_<task>/eval_episode_<i>_<success|failure|unknown>.mp4`` with LeRobot's own writer.

    Args:
        folder: Of the run.
        n_videos: Episodes of each task to record, the first ones.
    """

    def __init__(self, folder: OutputFolder, n_videos: int) -> None:
        self._folder = folder
        self._n_videos = n_videos
        self._recording = False
        self._frames: list[NDArray[np.uint8]] = []
        self._failed: FrameError | None = None

    def episode_started(self, environment: Environment, episode: int) -> None:  # noqa: D102
        self._recording, self._frames, self._failed = self._records(episode), [], None
        self._record(environment)

    def stepped(self, environment: Environment, outcome: StepResult) -> None:  # noqa: D102
        self._record(environment)

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:  # noqa: D102
        if not self._records(result.episode):
            return
        frames, self._frames = self._frames, []
        failed, self._failed = self._failed, None
        self._folder.write(_name_of(result), lambda path: _write(path, frames, failed, round(environment.fps)))

    def path_of(self, result: EpisodeResult) -> Path | None:
        """Where an episode's video is, once the episode has ended; None for one that has none."""
        path = self._folder.path / _name_of(result)
        return path if self._records(result.episode) and path.is_file() else None

    def _record(self, environment: Environment) -> None:
        if not self._recording:
            return
        try:
            self._frames.append(environment.video_frame())
        except FrameError as exc:  # No video is worth an episode.
            self._recording, self._failed = False, exc

    def _records(self, episode: int) -> bool:
        return episode < self._n_videos


def _name_of(result: EpisodeResult) -> str:
    outcome = {True: "success", False: "failure", None: "unknown"}[result.success]
    return f"videos/{result.task_group}_{result.task_id}/eval_episode_{result.episode}_{outcome}.mp4"


def _write(path: Path, frames: list[NDArray[np.uint8]], failed: FrameError | None, fps: int) -> None:
    if failed is not None:
        raise failed
    from lerobot.utils.io_utils import write_video

    write_video(str(path), np.stack(frames), fps)
