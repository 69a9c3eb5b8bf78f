"""``eval_info.json``: a run in lerobot-eval's schema, with our figures beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.client.record.statistics import async_figures, known_successes, mean

__all__ = ["EVAL_INFO_NAME", "VideoOf", "eval_info", "without_nan", "write_eval_info"]

EVAL_INFO_NAME = "eval_info.json"

VideoOf = Callable[[EpisodeResult], Path | None]
"""From an episode to its video; None where it has none."""


def _no_video(episode: EpisodeResult) -> Path | None:
    return None


def eval_info(result: EvaluationResult, video_of: VideoOf = _no_video) -> dict[str, Any]:
    """The run in lerobot-eval's schema, with ``async`` figures beside each of its aggregates.

    Args:
        result: What the run found out.
        video_of: Where an episode's video is.
    """
    per_task = [
        {
            "task_group": group,
            "task_id": task_id,
            "metrics": {
                "sum_rewards": [e.sum_reward for e in episodes],
                "max_rewards": [e.max_reward for e in episodes],
                "successes": [e.success for e in episodes],
                "video_paths": _videos(episodes, video_of),
                "predicted_video_paths": [],
            },
            "async": async_figures(episodes),
        }
        for (group, task_id), episodes in result.by_task().items()
    ]
    groups = dict.fromkeys(e.task_group for e in result.episodes)
    per_group = {group: _aggregate([e for e in result.episodes if e.task_group == group], video_of) for group in groups}
    overall = _aggregate(result.episodes, video_of)
    overall["eval_s"] = result.eval_s
    overall["eval_ep_s"] = result.eval_s / max(1, len(result.episodes))
    overall["async"] = async_figures(result.episodes) | {
        "policy": result.policy,
        "spoken": result.spoken or None,
        "repeatable": result.repeatable,
        # Counted apart: their simulators failed, and nothing is known of the policy.
        "given_up": [
            {"task_group": spec.task_group, "task_id": spec.task_id, "episode": spec.episode, "why": failures[-1]}
            for spec, failures in ((given_up.spec, given_up.failures) for given_up in result.given_up)
        ],
        "failed_attempts": _failed_attempts(result),
        "inference_delay_steps": list(result.inference_delay_steps),
    }
    return {"per_task": per_task, "per_group": per_group, "overall": overall}


def write_eval_info(path: Path, result: EvaluationResult, video_of: VideoOf = _no_video) -> None:
    """Write `eval_info` as JSON, null for what is not known."""
    path.write_text(json.dumps(without_nan(eval_info(result, video_of)), indent=2, allow_nan=False) + "\n")


def _aggregate(episodes: Sequence[EpisodeResult], video_of: VideoOf) -> dict[str, Any]:
    return {
        "avg_sum_reward": mean([e.sum_reward for e in episodes]),
        "avg_max_reward": mean([e.max_reward for e in episodes]),
        "pc_success": 100 * mean(known_successes(episodes)),
        "n_episodes": len(episodes),
        "video_paths": _videos(episodes, video_of),
        "predicted_video_paths": [],
    }


def _failed_attempts(result: EvaluationResult) -> int:
    return sum(len(e.failures) for e in result.episodes) + sum(len(g.failures) for g in result.given_up)


def without_nan(value: Any) -> Any:
    """A figure that is not known is null: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _videos(episodes: Iterable[EpisodeResult], video_of: VideoOf) -> list[str]:
    return [str(path) for path in map(video_of, episodes) if path is not None]
