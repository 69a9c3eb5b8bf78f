"""``gpu.png``: the rate over sessions and batch sizes, and what stands around the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

from async_delta_inference import stages
from harness.gpu.targets import Results

__all__ = ["draw_picture"]

_DPI = 110
_AROUND = tuple(stage for stage in stages.STAGES if stage != stages.FORWARD)


def draw_picture(path: Path, results: Results) -> None:
    """Two panels; a part that was not measured leaves its panel empty."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    _draw_rates(left, results.get("batches") or [], results.get("sessions") or [])
    _draw_stages(right, (results.get("around_forward") or {}).get("stages") or [])
    gpu = results["machine"]["gpu"]
    name = gpu["name"] if gpu else f"{results['machine']['device']}: says nothing about a GPU"
    figure.suptitle(f"{name}, {results['settings']['size']} policies")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _draw_rates(axis: Any, batches: Sequence[dict[str, Any]], sessions: Sequence[dict[str, Any]]) -> None:
    whole = [row for row in sessions if row["max_batch"] == row["sessions"]]
    sessions = sorted(whole, key=lambda row: int(row["sessions"]))
    for rows, x, y, style, what in (
        (batches, "batch_size", "samples_per_s", "o--", "forward passes alone"),
        (sessions, "sessions", "chunks_per_s", "s-", "sessions, whole chunks"),
    ):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            points = [(row[x], row[y]) for row in rows if row["policy"] == policy and row.get(y)]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=f"{policy}: {what}")
    axis.set(title="Chunks per second", xlabel="observations in a batch, or sessions", ylabel="1/s")
    if axis.has_data():
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter(ScalarFormatter())
        axis.legend(fontsize=8)
    axis.grid(True, which="both", alpha=0.2)


def _draw_stages(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A bar a stack, of the medians of its stages."""
    stacks = list(dict.fromkeys(row["transport"] for row in rows))
    left = np.zeros(len(stacks))
    medians_us = {(row["transport"], row["stage"]): row["p50_us"] for row in rows}
    for stage in _AROUND:
        widths = np.array([medians_us.get((stack, stage), 0.0) for stack in stacks])
        if widths.any():
            axis.barh(stacks, widths, left=left, label=stage)
            left += widths
    axis.set(title="Around the forward pass: medians of the stages", xlabel="us")
    if stacks:
        axis.invert_yaxis()
        axis.legend(fontsize=8)
