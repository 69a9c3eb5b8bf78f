"""A LeRobotDataset's frames in memory, and the order in which training sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from act_init import IMAGENET_MEAN, IMAGENET_STD
from demo_dataset import IS_RENDERED
from torch import Tensor


class FrameCache:
    """All frames of a dataset, decoded once.

    Attributes:
        sample_frames: int64 (n,), the frames training may start a chunk at: those whose images are fresh.
        stats: the dataset's statistics, with ImageNet's for images, as lerobot-train has them.
    """

    def __init__(self, root: Path, chunk_size: int = 50, episodes: list[int] | None = None) -> None:
        """Reads the dataset at `root`, about a millisecond per image; of it, only some episodes if they are given."""
        from lerobot.datasets import LeRobotDataset

        dataset = LeRobotDataset(f"local/{root.name}", root=root, episodes=episodes)
        self._chunk_size = chunk_size
        columns: dict[str, list[Tensor]] = {}
        episode_index, is_rendered = [], []
        self._camera_keys = list(dataset.meta.camera_keys)
        keys = [name for name in dataset.meta.features if name.startswith("observation.") or name == "action"]
        for item in (dataset[i] for i in range(len(dataset))):
            for key in keys:
                value = (item[key] * 255).round().to(torch.uint8) if key in self._camera_keys else item[key]
                columns.setdefault(key, []).append(value)
            episode_index.append(int(item["episode_index"]))
            is_rendered.append(bool(item.get(IS_RENDERED, True)))
        self._columns = {key: torch.stack(values) for key, values in columns.items()}
        self._end = episode_ends(torch.tensor(episode_index))
        self.sample_frames = torch.tensor(is_rendered).nonzero()[:, 0]
        self.stats: dict[str, Any] = dict(dataset.meta.stats)
        for key in self._camera_keys:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            self.stats[key] = {**self.stats[key], "mean": mean, "std": std}

    def batch(self, frames: Tensor) -> dict[str, Tensor]:
        """Gathers frames as LeRobot's loader does.

        Args:
            frames: int64 (B,).

        Returns:
            Images float32 (B, 3, H, W) in 0..1, state (B, D), `action` (B, chunk_size, A) and `action_is_pad`
            bool (B, chunk_size), true past the end of the frame's episode.
        """
        batch = {key: column[frames] for key, column in self._columns.items() if key != "action"}
        for key in self._camera_keys:
            batch[key] = batch[key].float() / 255
        steps, is_pad = chunk_frames(frames, self._end[frames], self._chunk_size)
        return {**batch, "action": self._columns["action"][steps], "action_is_pad": is_pad}


def episode_ends(episode_index: Tensor) -> Tensor:
    """For each frame of int64 (n,) episode numbers in ascending order, the frame after its episode's last: (n,)."""
    _, inverse, counts = torch.unique_consecutive(episode_index, return_inverse=True, return_counts=True)
    return counts.cumsum(0)[inverse]


def chunk_frames(frames: Tensor, ends: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """The frames whose actions make up each chunk, the last one repeated past the end, and where that is so.

    Args:
        frames: int64 (B,) first frames.
        ends: int64 (B,) frame after the last of each one's episode.
        chunk_size: length of a chunk.

    Returns:
        int64 (B, chunk_size) and bool (B, chunk_size).
    """
    steps = frames[:, None] + torch.arange(chunk_size)
    is_pad = steps >= ends[:, None]
    return torch.minimum(steps, ends[:, None] - 1), is_pad


def batch_indices(sample_frames: Tensor, batch_size: int, step: int, seed: int) -> Tensor:
    """The frames of batch number `step`: int64 (batch_size,). A pure function, so a resumed run repeats nothing.

    Each pass over the frames has its own order; a batch that reaches into the next pass is completed from it.
    """
    n_frames = len(sample_frames)
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    chosen = []
    for epoch in torch.unique(positions // n_frames).tolist():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(n_frames, generator=generator)
        in_epoch = positions[positions // n_frames == epoch] % n_frames
        chosen.append(sample_frames[order[in_epoch]])
    return torch.cat(chosen)
