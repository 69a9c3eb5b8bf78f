"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.client.record.statistics import async_figures, known_successes

__all__ = ["result_table"]

_COLUMNS = (
    "task",
    "episodes",
    "success",
    "95 % interval",
    "reward",
    "length",
    "control Hz",
    "starved",
    "chunks (async)",
    "latency p50 / p99",
)


def result_table(result: EvaluationResult) -> Table:
    """One row per task, and one overall when there are several.

    Columns: episodes; success rate with its 95 % Wilson interval, of the episodes
    of which it is known, n/a where there is none; mean sum of rewards; mean length in steps; control
    steps per wall second; steps at whose beginning no action was queued; chunks, and how many of them took effect while
    actions were still queued; seconds from the capture of an observation to the arrival of its chunk.
    """
    table = Table(title="Evaluation")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "task" else "right")
    tasks = result.by_task()
    for (group, task_id), episodes in tasks.items():
        table.add_row(f"{group}/{task_id}", *_cells(episodes))
    if len(tasks) > 1:
        table.add_section()
        table.add_row("overall", *_cells(result.episodes))
    return table


def _success_cells(episodes: Sequence[EpisodeResult], interval: Sequence[float]) -> tuple[str, str]:
    known = known_successes(episodes)
    if not known:
        return "n/a", "n/a"
    of = "" if len(known) == len(episodes) else f" of {len(known)}"
    return f"{100 * sum(known) / len(known):.1f} %{of}", f"{interval[0]:.0f}-{interval[1]:.0f} %"


def _cells(episodes: Sequence[EpisodeResult]) -> list[str]:
    figures = async_figures(episodes)
    n = len(episodes)
    return [
        str(n),
        *_success_cells(episodes, figures["success_interval"]),
        f"{sum(e.sum_reward for e in episodes) / n:.3g}",
        f"{figures['mean_length']:.1f}",
        f"{figures['control_hz']:.1f}",
        f"{figures['starved_steps']}",
        f"{figures['chunks']} ({figures['asynchronous_chunks']})",
        f"{1000 * figures['latency_p50_s']:.0f} / {1000 * figures['latency_p99_s']:.0f} ms",
    ]
