"""A small evaluation's result, made up."""

from __future__ import annotations

from typing import Any

import numpy as np

from async_delta_inference.client.record.results import ChunkRecord, EpisodeResult, EvaluationResult


def episode(group: str, task_id: int, index: int, rewards: list[float], success: bool, **fields: Any) -> EpisodeResult:
    return EpisodeResult(
        group, task_id, index, 1000 + index, None, success=success, rewards=np.array(rewards), **fields
    )


def small_result() -> EvaluationResult:
    """Two groups, three tasks, four episodes of one to three steps, two chunks and a request that stayed open."""
    chunks = [ChunkRecord(0, 0, 10, 0, 0, 0, 0.1), ChunkRecord(5, 8, 10, 3, 2, 2, 0.3)]
    episodes = [
        episode("spatial", 0, 0, [0.0, 0.5, 1.0], True, chunks=chunks, stepping_s=1.5, starved_steps=2, reset_s=0.5),
        episode("spatial", 0, 1, [0.0, 0.25], False, stepping_s=1.0, open_delay_steps=4, reset_s=0.1),
        episode("spatial", 3, 0, [1.0], True, stepping_s=0.5, starved_steps=1, reset_s=0.1),
        episode("goal", 1, 0, [0.0, 0.0], False, stepping_s=1.0, late_chunks=2, reset_s=0.1),
    ]
    return EvaluationResult(
        episodes=episodes, fps=20.0, eval_s=8.0, policy="a policy made up", inference_delay_steps=(3, 1)
    )
