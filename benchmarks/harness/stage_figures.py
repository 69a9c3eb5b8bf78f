"""The stages of a chunk as figures, and what recording them costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from async_delta_inference import stages
from async_delta_inference.stage_trace import StageSpan
from harness.statistics import Series

__all__ = ["recorder_cost", "stage_rows"]

_REPEATS = 5_000


def stage_rows(series: Series, spans: Iterable[StageSpan]) -> list[dict[str, Any]]:
    """One row of ``stages`` for every stage that a combination has, in order.

    Args:
        series: Of the combination.
        spans: Of its chunks.
    """
    durations_us: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        durations_us[span.stage].append(span.duration_ns / 1000)
    return [
        {
            "transport": series.transport,
            "payload": series.payload,
            "policy": series.policy,
            "pacing": series.pacing,
            "stage": stage,
            "n": len(found),
            "p50_us": round(float(np.median(found)), 2),
            "p99_us": round(float(np.percentile(found, 99)), 2),
        }
        for stage in stages.STAGES
        if (found := durations_us.get(stage))
    ]


def recorder_cost() -> dict[str, float]:
    """CPU time of all marks of one chunk together, both processes', us; on and off."""
    cost_us = {}
    for state in ("off", "on"):
        if state == "on":
            stages.start()
        best_ns = min(_time_marks() for _ in range(5))
        stages.stop()
        cost_us[f"{state}_us_per_chunk"] = round(best_ns / _REPEATS / 1000, 3)
    return cost_us


def _time_marks() -> int:
    start_ns = time.process_time_ns()
    for timestep in range(_REPEATS):
        for stage in stages.STAGES:
            if (recorder := stages.recorder) is not None:
                recorder.mark(stage, timestep)
    marked_ns = time.process_time_ns() - start_ns
    stages.take()
    start_ns = time.process_time_ns()
    for _ in range(_REPEATS):
        for _ in stages.STAGES:
            pass
    return max(0, marked_ns - (time.process_time_ns() - start_ns))
