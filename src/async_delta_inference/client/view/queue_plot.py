"""``--debug_visualize_queue_size``: queued actions over the steps of a run, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from async_delta_inference.client.record.results import EvaluationResult

__all__ = ["write_queue_plot"]


def write_queue_plot(path: Path, result: EvaluationResult) -> None:
    """Write a PNG; needs no display.

    Args:
        path: Where the picture goes.
        result: At least one episode.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title="Action queue", xlabel="environment steps", ylabel="queued actions")
    axes.step(
        np.arange(sum(e.length for e in result.episodes)), np.concatenate([e.queue_sizes for e in result.episodes])
    )
    start = 0
    for episode in result.episodes:
        axes.axvline(start, color="0.7", linewidth=0.8)
        merged = [start + chunk.merged_step for chunk in episode.chunks]
        axes.plot(merged, np.zeros(len(merged)), "|", color="C1", label="chunk merged" if start == 0 else None)
        start += episode.length
    axes.set_ylim(bottom=-0.5)
    axes.grid(True, alpha=0.3)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
