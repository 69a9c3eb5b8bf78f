"""``--plot_latency``: how long the chunks of a run took, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from async_delta_inference.client.record.results import EvaluationResult

__all__ = ["write_latency_plot"]


def write_latency_plot(path: Path, result: EvaluationResult) -> None:
    """Write a PNG; needs no display.

    Args:
        path: Where the picture goes.
        result: At least one chunk.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    latencies_ms = result.latencies_s() * 1e3
    median_ms, p99_ms = np.percentile(latencies_ms, [50, 99])
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, distribution = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    over_time.set(title="Latency of action chunks: captured to arrived", xlabel="chunk", ylabel="ms")
    over_time.plot(np.arange(len(latencies_ms)), latencies_ms, ".", markersize=4)
    first = 0
    for episode in result.episodes:
        over_time.axvline(first - 0.5, color="0.7", linewidth=0.8)
        first += len(episode.chunks)
    distribution.set(xlabel="share of the chunks")
    distribution.step(np.arange(1, len(latencies_ms) + 1) / len(latencies_ms), np.sort(latencies_ms), where="pre")
    for axes in (over_time, distribution):
        axes.axhline(median_ms, color="C1", linewidth=0.8, label=f"p50 {median_ms:.1f} ms")
        axes.axhline(p99_ms, color="C2", linewidth=0.8, label=f"p99 {p99_ms:.1f} ms")
        axes.grid(True, alpha=0.3)
    over_time.set_ylim(bottom=0.0)
    over_time.legend(loc="upper right")
    figure.savefig(path, dpi=120)
