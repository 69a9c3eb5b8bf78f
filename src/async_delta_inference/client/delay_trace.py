"""``inference_delays.json``: the delays of a run, which every run writes and a later one can replay."""

from __future__ import annotations

import json
from pathlib import Path

from async_delta_inference.client.clock import delay_in_steps
from async_delta_inference.client.results import EvaluationResult
from async_delta_inference.errors import ConfigError

__all__ = ["TRACE_NAME", "read_delay_trace", "write_delay_trace"]

TRACE_NAME = "inference_delays.json"


def write_delay_trace(path: Path, result: EvaluationResult) -> None:
    """Write one entry per chunk that took effect, in order.

    ``delay_steps``: steps from the observation to the chunk taking effect. ``latency_s``: seconds from its capture to
    the chunk's arrival, rounded up to steps at ``fps`` in ``latency_steps``.
    """
    chunks = [chunk for episode in result.episodes for chunk in episode.chunks]
    trace = {
        "fps": result.fps,
        "delay_steps": [chunk.merged_step - chunk.requested_step for chunk in chunks],
        "latency_s": [round(chunk.latency_s, 6) for chunk in chunks],
        "latency_steps": [delay_in_steps(chunk.latency_s, result.fps) for chunk in chunks],
    }
    path.write_text(json.dumps(trace) + "\n")


def read_delay_trace(path: Path) -> tuple[int, ...]:
    """The ``delay_steps`` of a trace.

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
