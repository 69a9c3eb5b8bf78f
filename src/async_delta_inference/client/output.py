"""What a run leaves in its output folder: ``eval_info.json`` in lerobot-eval's schema, and our figures beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.results import EpisodeResult, EvaluationResult
from async_delta_inference.errors import ConfigError

__all__ = ["async_figures", "default_output_dir", "eval_info", "make_output_dir", "success_interval", "write_eval_info"]


def default_output_dir(config: SimClientConfig) -> Path:
    """``outputs/eval/<date>/<time>_<env>_<policy>``."""
    now = datetime.now()
    env_type = getattr(config.env, "type", "env")
    return Path("outputs/eval") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{env_type}_{config.policy_type}"


def make_output_dir(folder: Path) -> None:
    """Make the folder before a run, not after it.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise ConfigError(f"--output_dir={folder} cannot be written to: {exc.strerror or exc}") from exc


def success_interval(successes: Sequence[bool]) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate, both ends in [0, 1]; (nan, nan) without episodes."""
    if not successes:
        return math.nan, math.nan
    from scipy.stats import binomtest

    interval = binomtest(sum(map(bool, successes)), len(successes)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def async_figures(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """What lerobot-eval has no word for.

    Returns:
        ``success_interval`` (95 %, percent), ``mean_length`` (steps), ``control_hz`` (steps per wall second),
        ``starved_steps`` (steps after the first of an episode at whose beginning no action was queued),
        ``chunks``, ``asynchronous_chunks`` (took effect while actions were queued), ``late_chunks``,
        ``latency_p50_s``, ``latency_p99_s`` (capture of the observation to arrival of its chunk), ``mean_delay_steps``,
        ``reset_s`` (mean).
    """
    chunks = [chunk for episode in episodes for chunk in episode.chunks]
    latencies_s = [chunk.latency_s for chunk in chunks]
    steps = sum(episode.length for episode in episodes)
    stepping_s = sum(episode.stepping_s for episode in episodes)
    return {
        "success_interval": [100 * end for end in success_interval([e.success for e in episodes])],
        "mean_length": steps / len(episodes) if episodes else math.nan,
        "control_hz": steps / stepping_s if stepping_s else math.nan,
        "starved_steps": sum(episode.starved_steps for episode in episodes),
        "chunks": len(chunks),
        "asynchronous_chunks": sum(episode.asynchronous_chunks for episode in episodes),
        "late_chunks": sum(episode.late_chunks for episode in episodes),
        "latency_p50_s": float(np.percentile(latencies_s, 50)) if latencies_s else math.nan,
        "latency_p99_s": float(np.percentile(latencies_s, 99)) if latencies_s else math.nan,
        "mean_delay_steps": _mean([chunk.merged_step - chunk.requested_step for chunk in chunks]),
        "reset_s": _mean([episode.reset_s for episode in episodes]),
    }


def eval_info(result: EvaluationResult) -> dict[str, Any]:
    """The run in lerobot-eval's schema, with ``async`` figures beside each of its aggregates."""
    per_task = [
        {
            "task_group": group,
            "task_id": task_id,
            "metrics": {
                "sum_rewards": [e.sum_reward for e in episodes],
                "max_rewards": [e.max_reward for e in episodes],
                "successes": [e.success for e in episodes],
                "video_paths": _videos(episodes),
                "predicted_video_paths": [],
            },
            "async": async_figures(episodes),
        }
        for (group, task_id), episodes in result.by_task().items()
    ]
    groups = dict.fromkeys(e.task_group for e in result.episodes)
    per_group = {group: _aggregate([e for e in result.episodes if e.task_group == group]) for group in groups}
    overall = _aggregate(result.episodes)
    overall["eval_s"] = result.eval_s
    overall["eval_ep_s"] = result.eval_s / max(1, len(result.episodes))
    overall["async"] = async_figures(result.episodes) | {"inference_delay_steps": list(result.inference_delay_steps)}
    return {"per_task": per_task, "per_group": per_group, "overall": overall}


def write_eval_info(path: Path, result: EvaluationResult) -> None:
    """Write `eval_info` as JSON."""
    path.write_text(json.dumps(eval_info(result), indent=2) + "\n")


def _aggregate(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    return {
        "avg_sum_reward": _mean([e.sum_reward for e in episodes]),
        "avg_max_reward": _mean([e.max_reward for e in episodes]),
        "pc_success": 100 * _mean([e.success for e in episodes]),
        "n_episodes": len(episodes),
        "video_paths": _videos(episodes),
        "predicted_video_paths": [],
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _videos(episodes: Iterable[EpisodeResult]) -> list[str]:
    return [str(episode.video_path) for episode in episodes if episode.video_path is not None]
