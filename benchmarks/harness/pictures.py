"""A run's results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from async_delta_inference import stages
from harness.statistics import Series

__all__ = ["draw_pictures"]

_DPI = 110


def draw_pictures(folder: Path, series: Sequence[Series], results: dict[str, Any]) -> None:
    """``latency_cdf.png``, ``latency_bars.png`` and ``latency_stages.png``."""
    _draw_cdfs(folder / "latency_cdf.png", [one for one in series if one.level == "transport" and one.cores == "any"])
    _draw_bars(folder / "latency_bars.png", [row for row in results["rows"] if row["cores"] == "any"])
    _draw_stages(folder / "latency_stages.png", results["stages"])


def _draw_cdfs(path: Path, series: Sequence[Series]) -> None:
    """How many exchanges took at most so long; a panel a payload and pacing."""
    panels = list(dict.fromkeys((one.payload, one.pacing) for one in series))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.4 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for (payload, pacing), axis in zip(panels, axes.flat, strict=False):
        for one in series:
            if (one.payload, one.pacing) == (payload, pacing):
                durations_us = np.sort(one.all_us())
                style = "k--" if one.transport == "floor" else "-"
                shares = np.arange(1, len(durations_us) + 1) / len(durations_us)
                axis.plot(durations_us, shares, style, label=_label(one.transport, one.mode), linewidth=1.2)
        axis.set(xscale="log", title=f"{payload}, {pacing}", xlabel="us", ylabel="share of exchanges")
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(fontsize=7)
    _save(figure, path)


def _draw_bars(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """p50 and p99 in the tight loop, a group a payload, with the floor as a line across its group."""
    rows = [row for row in rows if (row["level"], row["pacing"]) == ("transport", "tight")]
    payloads = list(dict.fromkeys(row["payload"] for row in rows))
    names = list(dict.fromkeys(_label(row["transport"], row["mode"]) for row in rows if row["transport"] != "floor"))
    width = 0.8 / max(1, len(names))
    figure, axis = plt.subplots(figsize=(1.5 + 1.9 * len(payloads), 4.5))
    for row in rows:
        group = payloads.index(row["payload"])
        if row["transport"] == "floor":
            axis.hlines(row["p50_us"], group - 0.45, group + 0.45, "k", "dashed", linewidth=1)
            continue
        number = names.index(_label(row["transport"], row["mode"]))
        position, color = group - 0.4 + (number + 0.5) * width, f"C{number}"
        axis.bar(position, row["p50_us"], width, color=color)
        axis.bar(position, row["p99_us"] - row["p50_us"], width, row["p50_us"], color=color, alpha=0.35)
    handles = [plt.Rectangle((0, 0), 1, 1, color=f"C{number}") for number in range(len(names))]
    axis.legend(handles, names, fontsize=8)
    axis.set(yscale="log", ylabel="us", title="tight loop: p50 (solid), p99 (pale), C floor (dashed)")
    axis.set_xticks(range(len(payloads)), payloads)
    axis.grid(True, axis="y", which="both", alpha=0.2)
    _save(figure, path)


def _draw_stages(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Medians of the stages on top of each other, a panel a policy and pacing."""
    panels = list(dict.fromkeys((row["policy"], row["payload"], row["pacing"]) for row in rows))
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(4.2 * max(1, len(panels)), 4.5), squeeze=False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        own = [row for row in rows if (row["policy"], row["payload"], row["pacing"]) == panel]
        transports = list(dict.fromkeys(row["transport"] for row in own))
        bottoms = np.zeros(len(transports))
        for number, stage in enumerate(stages.STAGES):
            heights = np.zeros(len(transports))
            for row in own:
                if row["stage"] == stage:
                    heights[transports.index(row["transport"])] = row["p50_us"] / 1000
            axis.bar(transports, heights, bottom=bottoms, label=stage, color=f"C{number}")
            bottoms += heights
        axis.set(title=", ".join(panel), ylabel="ms")
        axis.legend(fontsize=7)
    _save(figure, path)


def _label(transport: str, mode: str) -> str:
    return f"{transport} {mode}" if transport.startswith("shm") else transport


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
