"""Writes demonstrations as a LeRobotDataset, few episodes at a time, so that an interrupted run loses only those."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset

LOG_NAME = "demonstrations.jsonl"
IS_RENDERED = "is_rendered"


@dataclass
class Episode:
    """One demonstration.

    Attributes:
        frames: one mapping per control step: `observation.*` arrays, `action`, `is_rendered` and `task`.
        is_success: whether the task was solved.
        details: how the episode came about (init state, seed, offsets), for the log.
    """

    frames: list[dict[str, Any]]
    is_success: bool
    details: dict[str, Any] = field(default_factory=dict)


def dataset_features(
    image_shapes: Mapping[str, tuple[int, int, int]], state_dim: int, action_dim: int
) -> dict[str, Any]:
    """Describes the columns of a dataset.

    Args:
        image_shapes: camera name, without `observation.images.`, to (height, width, 3).
        state_dim: length of `observation.state`.
        action_dim: length of `action`.
    """
    features: dict[str, Any] = {
        f"observation.images.{name}": {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
        for name, shape in image_shapes.items()
    }
    for name, dim in (("observation.state", state_dim), ("action", action_dim)):
        names = [f"{name.split('.')[-1]}_{i}" for i in range(dim)]
        features[name] = {"dtype": "float32", "shape": (dim,), "names": names}
    # False where the images repeat the last rendered ones, to save time: training starts no chunk at such a frame.
    features[IS_RENDERED] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def open_to_append(root: Path, fps: int, features: dict[str, Any]) -> LeRobotDataset:
    """Creates the dataset at `root`, or opens it to append. The caller finalizes it."""
    from lerobot.datasets import LeRobotDataset

    repo_id = f"local/{root.name}"
    if (root / "meta" / "info.json").exists():
        return LeRobotDataset.resume(repo_id, root=root)
    return LeRobotDataset.create(repo_id, fps=fps, features=features, root=root, use_videos=False)


def count_episodes(root: Path) -> int:
    """Number of episodes that are safely on disk."""
    info = root / "meta" / "info.json"
    return int(json.loads(info.read_text())["total_episodes"]) if info.exists() else 0


def write_demonstrations(
    root: Path,
    fps: int,
    features: dict[str, Any],
    n_episodes: int,
    record: Callable[[int, int], Episode],
    max_attempts: int = 5,
    episodes_per_save: int = 1,
) -> None:
    """Records episodes until the dataset holds `n_episodes`; goes on where an earlier run stopped.

    Args:
        root: folder of the dataset.
        fps: control frequency, Hz.
        features: from `dataset_features`.
        n_episodes: how many the finished dataset holds.
        record: `(episode_index, attempt) -> Episode`; must depend on nothing else, so that resuming repeats nothing.
        max_attempts: how often an episode that fails is tried again with another attempt number.
        episodes_per_save: how many are recorded before they are written; an interrupted run repeats as many. To open
            the dataset takes longer than to write a short episode.

    Raises:
        RuntimeError: if the expert fails an episode `max_attempts` times.
    """
    if root.exists() and not (root / "meta" / "info.json").exists():
        shutil.rmtree(root)  # What a run that died in its first episode left behind.
    started_s = time.monotonic()
    first = count_episodes(root)
    for start in range(first, n_episodes, episodes_per_save):
        indices = range(start, min(start + episodes_per_save, n_episodes))
        recorded = [_record_success(record, index, max_attempts) for index in indices]
        # Opened for these episodes only: a run that is killed while it records leaves finished files behind.
        dataset = open_to_append(root, fps, features)
        for episode, _ in recorded:
            for frame in episode.frames:
                dataset.add_frame(frame)
            dataset.save_episode()
        dataset.finalize()
        with (root / LOG_NAME).open("a") as log:
            for index, (episode, attempt) in zip(indices, recorded, strict=True):
                entry = {"episode": index, "attempt": attempt, "steps": len(episode.frames), **episode.details}
                log.write(json.dumps(entry) + "\n")
        elapsed_s = time.monotonic() - started_s
        done = indices[-1] + 1
        remaining_s = elapsed_s / (done - first) * (n_episodes - done)
        print(f"{root.name}: {done}/{n_episodes} {entry} {elapsed_s:.0f} s, {remaining_s:.0f} s left", flush=True)


def _record_success(record: Callable[[int, int], Episode], index: int, max_attempts: int) -> tuple[Episode, int]:
    for attempt in range(max_attempts):
        episode = record(index, attempt)
        if episode.is_success:
            return episode, attempt
        print(f"episode {index}: attempt {attempt} failed, discarded", flush=True)
    raise RuntimeError(f"the expert failed episode {index} {max_attempts} times")


def image_hwc_uint8(image: Any) -> NDArray[np.uint8]:
    """Undoes LeRobot's image preprocessing: float (1, 3, H, W) in 0..1 to uint8 (H, W, 3), exactly."""
    return np.rint(np.asarray(image[0]).transpose(1, 2, 0) * 255.0).astype(np.uint8)
