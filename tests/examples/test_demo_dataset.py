"""Demonstrations written with LeRobot's writer: schema, resuming, failed attempts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from demo_dataset import Episode, count_episodes, dataset_features, image_hwc_uint8
from demo_dataset import write_demonstrations as write

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset

FPS = 20
FEATURES = dataset_features({"image": (8, 6, 3)}, state_dim=8, action_dim=7)


def make_episode(index: int, attempt: int = 0, n_frames: int = 3, is_success: bool = True) -> Episode:
    frames = [
        {
            "observation.images.image": np.full((8, 6, 3), 10 * index + step, dtype=np.uint8),
            "observation.state": np.full(8, index, dtype=np.float32),
            "action": np.full(7, step, dtype=np.float32),
            "is_rendered": np.array([True]),
            "task": "pick up the soup",
        }
        for step in range(n_frames)
    ]
    return Episode(frames, is_success, {"init_state": index})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "demos"


def load(root: Path) -> LeRobotDataset:
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset("local/demos", root=root, delta_timestamps={"action": [i / FPS for i in range(4)]})


def test_dataset_holds_what_was_recorded(root: Path) -> None:
    write(root, FPS, FEATURES, 2, make_episode)
    dataset = load(root)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 6, FPS)
    item = dataset[4]
    assert item["observation.images.image"].shape == (3, 8, 6)
    assert item["task"] == "pick up the soup"
    np.testing.assert_array_equal(image_hwc_uint8(item["observation.images.image"][None]), np.full((8, 6, 3), 11))
    np.testing.assert_array_equal(item["observation.state"], np.full(8, 1.0))


def test_episodes_that_are_saved_together_are_the_same_episodes(root: Path, tmp_path: Path) -> None:
    total = 5
    write(root, FPS, FEATURES, total, make_episode, episodes_per_save=2)
    write(tmp_path / "one_by_one", FPS, FEATURES, total, make_episode)
    assert (root / "demonstrations.jsonl").read_text() == (tmp_path / "one_by_one" / "demonstrations.jsonl").read_text()
    together = load(root)
    assert together.num_episodes == total
    for number in range(3 * total):
        assert together[number]["episode_index"] == number // 3
        np.testing.assert_array_equal(together[number]["observation.state"], np.full(8, float(number // 3)))


def test_a_chunk_is_padded_at_the_end_of_its_own_episode(root: Path) -> None:
    write(root, FPS, FEATURES, 2, make_episode)
    item = load(root)[1]
    np.testing.assert_array_equal(item["action"][:, 0], [1, 2, 2, 2])
    assert item["action_is_pad"].tolist() == [False, False, True, True]


def test_an_interrupted_run_goes_on_and_repeats_nothing(root: Path) -> None:
    recorded = []

    def record_until(stop: int | None) -> Callable[[int, int], Episode]:
        def record(index: int, attempt: int) -> Episode:
            if index == stop:
                raise KeyboardInterrupt
            recorded.append(index)
            return make_episode(index)

        return record

    total = 4
    with pytest.raises(KeyboardInterrupt):
        write(root, FPS, FEATURES, total, record_until(2))
    assert count_episodes(root) == 2
    recorded.clear()
    write(root, FPS, FEATURES, total, record_until(None))
    assert recorded == [2, 3]
    dataset = load(root)
    assert dataset.num_episodes == total
    assert [int(dataset[i]["observation.state"][0]) for i in range(0, 3 * total, 3)] == list(range(total))


def test_failed_attempts_are_discarded(root: Path) -> None:
    write(
        root,
        FPS,
        FEATURES,
        1,
        lambda index, attempt: make_episode(index, n_frames=attempt + 2, is_success=attempt == 2),
    )
    assert load(root).num_frames == 4


def test_an_expert_that_never_succeeds_is_reported(root: Path) -> None:
    with pytest.raises(RuntimeError, match="episode 0"):
        write(root, FPS, FEATURES, 1, lambda index, attempt: make_episode(index, is_success=False))
