"""Frames in memory: chunks end with their episode, and the order repeats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from demo_dataset import Episode, dataset_features, write_demonstrations
from frame_cache import FrameCache, batch_indices, chunk_frames, episode_ends

CHUNK_SIZE = 4


def make_episode(index: int, attempt: int) -> Episode:
    frames = [
        {
            "observation.images.image": np.full((8, 6, 3), 10 * index + step, dtype=np.uint8),
            "observation.state": np.full(8, index, dtype=np.float32),
            "action": np.full(7, 10 * index + step, dtype=np.float32),
            "is_rendered": np.array([step != 1]),
            "task": "pick up the soup",
        }
        for step in range(3 + index)
    ]
    return Episode(frames, is_success=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "demos"
    write_demonstrations(folder, 20, dataset_features({"image": (8, 6, 3)}, 8, 7), 2, make_episode)
    return folder


def test_a_batch_is_what_lerobots_own_loader_gives(root: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("local/demos", root=root, delta_timestamps={"action": [i / 20 for i in range(CHUNK_SIZE)]})
    batch = FrameCache(root, CHUNK_SIZE).batch(torch.arange(len(dataset)))
    for frame in range(len(dataset)):
        for key in ("observation.images.image", "observation.state", "action", "action_is_pad"):
            torch.testing.assert_close(batch[key][frame], dataset[frame][key], msg=f"{key} of frame {frame}")


def test_chunks_stop_at_the_end_of_their_episode() -> None:
    ends = episode_ends(torch.tensor([0, 0, 0, 1, 1]))
    assert ends.tolist() == [3, 3, 3, 5, 5]
    steps, is_pad = chunk_frames(torch.tensor([1, 3]), ends[[1, 3]], 3)
    assert steps.tolist() == [[1, 2, 2], [3, 4, 4]]
    assert is_pad.tolist() == [[False, False, True], [False, False, True]]


def test_every_epoch_shows_every_frame_once_in_its_own_order() -> None:
    frames = torch.arange(100, 110)
    seen = torch.cat([batch_indices(frames, 4, step, seed=0) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == frames.tolist()
    assert seen[:10].tolist() != seen[10:].tolist()
    assert not torch.equal(batch_indices(frames, 4, 0, seed=0), batch_indices(frames, 4, 0, seed=1))


def test_no_sample_starts_where_the_image_is_an_old_one(root: Path) -> None:
    assert FrameCache(root, CHUNK_SIZE).sample_frames.tolist() == [0, 2, 3, 5, 6]


def test_episodes_that_were_not_chosen_are_left_out(root: Path) -> None:
    cache = FrameCache(root, CHUNK_SIZE, episodes=[1])
    assert cache.sample_frames.tolist() == [0, 2, 3]
    assert cache.batch(torch.tensor([0]))["action"][0, :, 0].tolist() == [10, 11, 12, 13]
