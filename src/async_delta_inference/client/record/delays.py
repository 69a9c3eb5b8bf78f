"""Inference delays in control steps, and ``inference_delays.json``: a run's own, which a later run can replay."""

from __future__ import annotations

import json
import math
from pathlib import Path

from async_delta_inference.client.record.results import EvaluationResult
from async_delta_inference.errors import ConfigError

__all__ = ["DELAYS_NAME", "delay_in_steps", "read_recorded_delays", "write_recorded_delays"]

DELAYS_NAME = "inference_delays.json"


def delay_in_steps(delay_s: float, fps: float) -> int:
    """Seconds of inference as control steps, rounded up; a delay of 0 stays 0.

    Args:
        delay_s: Seconds from the observation to its actions.
        fps: Control steps per second.
    """
    # Seconds times rate is inexact in binary: 0.15 s at 20 steps/s must be 3 steps, not 4.
    return math.ceil(round(delay_s * fps, 9))


def write_recorded_delays(path: Path, result: EvaluationResult) -> None:
    """Write one entry per request, in order, so that a run that replays it asks and merges at the same steps.

    ``delay_steps``: steps from the observation to its chunk taking effect; of a request that was open when its episode
    ended, steps to that end at least. ``latency_s``: seconds from its capture to the chunk's arrival, rounded up to
    steps at ``fps`` in ``latency_steps``; null for an open request.
    """
    delays: list[int] = []
    latencies_s: list[float | None] = []
    for episode in result.episodes:
        delays += [chunk.merged_step - chunk.requested_step for chunk in episode.chunks]
        latencies_s += [chunk.latency_s for chunk in episode.chunks]
        if episode.open_delay_steps is not None:
            delays.append(episode.open_delay_steps)
            latencies_s.append(None)
    recorded = {
        "fps": result.fps,
        "delay_steps": delays,
        "latency_s": [None if s is None else round(s, 6) for s in latencies_s],
        "latency_steps": [None if s is None else delay_in_steps(s, result.fps) for s in latencies_s],
    }
    path.write_text(json.dumps(recorded) + "\n")


def read_recorded_delays(path: Path) -> tuple[int, ...]:
    """The ``delay_steps`` that a run recorded.

    Raises:
        ConfigError: The file cannot be read, or holds no delays of 0 or more steps.
    """
    try:
        delays = json.loads(path.read_text())["delay_steps"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"--inference_delay_trace={path} cannot be read: {type(exc).__name__}: {exc}") from exc
    if not isinstance(delays, list) or not delays or not all(type(d) is int and d >= 0 for d in delays):
        raise ConfigError(f"--inference_delay_trace={path} holds no list of delays of 0 or more steps")
    return tuple(delays)
