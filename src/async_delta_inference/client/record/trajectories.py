"""``--save_trajectories``: one ``.npz`` per episode, to compare anything with anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.results import EpisodeResult

__all__ = ["write_trajectory"]


def write_trajectory(folder: OutputFolder, number: int, result: EpisodeResult) -> None:
    """Write ``trajectories/<number>_<group>_<task>_<episode>.npz``, numbered through the run: names sort in its order.

    Arrays: ``action`` (T, A) float32; ``reward`` (T,) float64; ``state`` (T, S) float32, before each action;
    ``success`` bool, left out where the environment never said; ``seed`` and ``init_state_id`` int64, -1 for none; and
    one entry per chunk that took effect:
    ``chunk_requested_step``, ``chunk_merged_step``, ``chunk_length`` int64, ``chunk_delay_steps`` int64.
    Nothing in it depends on wall time, so that equal runs leave equal files.

    Args:
        folder: Of the run.
        number: The episode's place among all that are to be run.
        result: With its arrays.
    """
    requested = np.array([chunk.requested_step for chunk in result.chunks], np.int64)
    merged = np.array([chunk.merged_step for chunk in result.chunks], np.int64)
    # Suites are run in the order they were named in, which need not be the alphabet's.
    name = f"{number:05d}_{result.task_group}_{result.task_id}_{result.episode}.npz"
    arrays: dict[str, Any] = {
        "action": result.actions,
        "reward": result.rewards,
        "state": result.states,
        "seed": np.array(-1 if result.seed is None else result.seed, np.int64),
        "init_state_id": np.array(-1 if result.init_state_id is None else result.init_state_id, np.int64),
        "chunk_requested_step": requested,
        "chunk_merged_step": merged,
        "chunk_delay_steps": merged - requested,
        "chunk_length": np.array([chunk.length for chunk in result.chunks], np.int64),
    }
    if result.success is not None:
        arrays["success"] = np.array(result.success)
    folder.write(f"trajectories/{name}", lambda path: np.savez(path, **arrays))
