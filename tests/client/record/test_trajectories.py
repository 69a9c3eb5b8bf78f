"""The files of ``--save_trajectories``: their names, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.results import ChunkRecord, EpisodeResult
from async_delta_inference.client.record.trajectories import write_trajectory

STEPS = 4


def episode(
    group: str, task_id: int, index: int, *, seed: int | None = 7, init_state_id: int | None = 3
) -> EpisodeResult:
    return EpisodeResult(
        group,
        task_id,
        index,
        seed,
        init_state_id,
        success=True,
        actions=np.arange(STEPS * 2, dtype=np.float32).reshape(STEPS, 2),
        rewards=np.array([0.0, 0.0, 0.0, 1.0]),
        states=np.tile(np.arange(8, 11, dtype=np.float32), (STEPS, 1)),
        chunks=[ChunkRecord(0, 0, 3, 0, 0, 0, 0.1), ChunkRecord(1, 3, 5, 2, 0, 0, 0.1)],
    )


def written(folder: Path, *episodes: EpisodeResult) -> list[Path]:
    for number, result in enumerate(episodes):
        write_trajectory(OutputFolder(folder), number, result)
    return sorted((folder / "trajectories").iterdir())


def test_names_sort_in_the_order_of_the_episodes(tmp_path: Path) -> None:
    """Over suites that the alphabet would order otherwise, and beyond ten tasks and episodes."""
    order = [("spatial", 9, 9), ("spatial", 9, 10), ("spatial", 10, 0), ("goal", 0, 0)]
    paths = written(tmp_path, *(episode(*key) for key in order))
    assert [path.stem.split("_", 1)[1] for path in paths] == [f"{g}_{t}_{e}" for g, t, e in order]


def test_an_episode_is_all_there(tmp_path: Path) -> None:
    (path,) = written(tmp_path, episode("goal", 0, 0))
    with np.load(path) as arrays:
        shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        integer, per_chunk = np.dtype(np.int64), (2,)
        assert shapes == {
            "action": (np.dtype(np.float32), (STEPS, 2)),
            "reward": (np.dtype(np.float64), (STEPS,)),
            "state": (np.dtype(np.float32), (STEPS, 3)),
            "success": (np.dtype(np.bool_), ()),
            "seed": (integer, ()),
            "init_state_id": (integer, ()),
            "chunk_requested_step": (integer, per_chunk),
            "chunk_merged_step": (integer, per_chunk),
            "chunk_delay_steps": (integer, per_chunk),
            "chunk_length": (integer, per_chunk),
        }
        assert (arrays["seed"], arrays["init_state_id"], arrays["success"]) == (7, 3, True)
        assert arrays["action"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert arrays["reward"].tolist() == [0, 0, 0, 1]
        assert arrays["state"].tolist() == [[8, 9, 10]] * STEPS
        assert arrays["chunk_requested_step"].tolist() == [0, 1]
        assert arrays["chunk_merged_step"].tolist() == [0, 3]
        assert arrays["chunk_delay_steps"].tolist() == [0, 2]
        assert arrays["chunk_length"].tolist() == [3, 5]


def test_what_there_is_not_is_minus_one(tmp_path: Path) -> None:
    (path,) = written(tmp_path, episode("goal", 0, 0, seed=None, init_state_id=None))
    with np.load(path) as arrays:
        assert (arrays["seed"], arrays["init_state_id"]) == (-1, -1)
