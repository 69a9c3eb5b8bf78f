"""Inference delays in control steps, and ``inference_delays.json``: a run's own, which a later run can replay."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from async_delta_inference.client.environments.episode import EpisodeKey
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.errors import ConfigError

__all__ = ["DELAYS_NAME", "RecordedDelays", "delay_in_steps", "read_recorded_delays", "write_recorded_delays"]

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

    ``episodes``: whose requests they are, in the same order: task, index, and how many requests.

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
        "episodes": [
            {"task_group": e.task_group, "task_id": e.task_id, "episode": e.episode, "requests": _requests(e)}
            for e in result.episodes
        ],
        "delay_steps": delays,
        "latency_s": [None if s is None else round(s, 6) for s in latencies_s],
        "latency_steps": [None if s is None else delay_in_steps(s, result.fps) for s in latencies_s],
    }
    path.write_text(json.dumps(recorded) + "\n")


def _requests(episode: EpisodeResult) -> int:
    return len(episode.chunks) + (episode.open_delay_steps is not None)


@dataclass(frozen=True)
class RecordedDelays:
    """Those of another run, in steps.

    Args:
        delays: Of all its requests, in order.
        by_episode: The same, episode by episode; empty where the file does not say.
    """

    delays: tuple[int, ...]
    by_episode: dict[EpisodeKey, tuple[int, ...]]


def read_recorded_delays(path: Path) -> RecordedDelays:
    """What a run recorded, or somebody wrote: ``delay_steps``, and ``episodes`` which says whose they are.

    Raises:
        ConfigError: The file cannot be read, or holds no delays of 0 or more steps.
    """
    try:
        recorded = json.loads(path.read_text())
        delays = recorded["delay_steps"]
        episodes = [
            ((str(e["task_group"]), int(e["task_id"]), int(e["episode"])), int(e["requests"]))
            for e in recorded.get("episodes", ())
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise ConfigError(f"--inference_delay_trace={path} cannot be read: {type(exc).__name__}: {exc}") from exc
    if not isinstance(delays, list) or not delays or not all(type(d) is int and d >= 0 for d in delays):
        raise ConfigError(f"--inference_delay_trace={path} holds no list of delays of 0 or more steps")
    remaining = iter(delays)
    by_episode = {key: tuple(islice(remaining, requests)) for key, requests in episodes}
    return RecordedDelays(tuple(delays), {key: listed for key, listed in by_episode.items() if listed})
