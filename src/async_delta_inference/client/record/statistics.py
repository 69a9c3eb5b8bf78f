"""The statistics over the episodes of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from async_delta_inference.client.record.results import EpisodeResult

__all__ = ["async_figures", "known_successes", "mean", "success_interval"]


def success_interval(successes: Sequence[bool]) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate, both ends in [0, 1]; (nan, nan) without episodes."""
    if not successes:
        return math.nan, math.nan
    from scipy.stats import binomtest

    interval = binomtest(sum(map(bool, successes)), len(successes)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def known_successes(episodes: Iterable[EpisodeResult]) -> list[bool]:
    """Of the episodes of which it is known."""
    return [episode.success for episode in episodes if episode.success is not None]


def async_figures(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """What lerobot-eval has no word for.

    Returns:
        ``success_interval`` (95 %, percent), ``success_unknown`` (episodes whose environment did not say; not counted
        in any rate), ``mean_length`` (steps), ``control_hz`` (steps per wall second),
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
        "success_interval": [100 * end for end in success_interval(known_successes(episodes))],
        "success_unknown": sum(episode.success is None for episode in episodes),
        "mean_length": steps / len(episodes) if episodes else math.nan,
        "control_hz": steps / stepping_s if stepping_s else math.nan,
        "starved_steps": sum(episode.starved_steps for episode in episodes),
        "chunks": len(chunks),
        "asynchronous_chunks": sum(episode.asynchronous_chunks for episode in episodes),
        "late_chunks": sum(episode.late_chunks for episode in episodes),
        "latency_p50_s": float(np.percentile(latencies_s, 50)) if latencies_s else math.nan,
        "latency_p99_s": float(np.percentile(latencies_s, 99)) if latencies_s else math.nan,
        "mean_delay_steps": mean([chunk.merged_step - chunk.requested_step for chunk in chunks]),
        "reset_s": mean([episode.reset_s for episode in episodes]),
    }


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN of no values, without numpy's warning."""
    return float(np.mean(values)) if len(values) else math.nan
