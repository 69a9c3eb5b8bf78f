"""What a page draws of runs: figures against delay, the latency of chunks, the queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from async_delta_inference.client.compare.runs import FinishedRun
from async_delta_inference.client.record.figures import RunFigures, run_figures
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.client.report.charts import Line, Point, line_chart

__all__ = ["delay_charts", "latency_chart", "queue_chart", "queue_sizes"]

_AGAINST_DELAY = {
    "success": "success, %",
    "steps_to_completion": "steps to completion",
    "reaction_latency_steps": "reaction latency, steps",
    "action_jerk": "jerk of actions, units/s³",
    "state_jerk": "jerk of state, units/s³",
    "switch_jump": "jump at a switch, units",
    "stale_share": "share of stale actions",
    "starved_share": "share of starved steps",
}


def delay_of(run: FinishedRun) -> float | None:
    """The inference delay in steps that a run prescribed; None where it had several, or none."""
    delays = set(run.described.get("inference_delay_steps") or ())
    return float(delays.pop()) if len(delays) == 1 else None


def delay_charts(runs: Sequence[tuple[str, FinishedRun]]) -> Iterator[tuple[str, str]]:
    """A chart a figure, with the figure's name; runs that differ in more than the delay are lines of their own.

    Args:
        runs: With their names. Nothing is drawn of fewer than two delays.
    """
    points = [(_line_name(run, runs), delay, run) for _, run in runs if (delay := delay_of(run)) is not None]
    if len({delay for _, delay, _ in points}) < 2:
        return
    figures = {id(run): run_figures(list(run.episodes.values())) for _, _, run in points}
    for figure, label in _AGAINST_DELAY.items():
        lines = []
        for name in dict.fromkeys(name for name, _, _ in points):
            of_line = sorted((delay, id(run)) for line, delay, run in points if line == name)
            drawn = [point for delay, run in of_line if (point := _point(figure, delay, figures[run])) is not None]
            if drawn:
                lines.append(Line(name, drawn))
        if lines:
            top = 100.0 if figure == "success" else None
            chart = line_chart(lines, title=label, x_label="inference delay, steps", y_label=label, y_top=top)
            yield figure, chart


def _point(figure: str, delay: float, figures: RunFigures) -> Point | None:
    if figure != "success":
        value = figures.means[figure]
        return None if value is None else Point(delay, value)
    if figures.success_rate is None or figures.success_interval is None:
        return None
    low, high = figures.success_interval
    return Point(delay, 100 * figures.success_rate, 100 * low, 100 * high)


def _line_name(run: FinishedRun, runs: Sequence[tuple[str, FinishedRun]]) -> str:
    """The flags besides the delay in which the runs differ."""
    ignored = (
        "inference_delay",
        "inference_delay_s",
        "output_dir",
        "overwrite",
        "resume",
        "server_address",
        "transport",
    )
    everything = [other.flags for _, other in runs]
    names = [
        name for name in run.flags if name not in ignored and len({str(flags.get(name)) for flags in everything}) > 1
    ]
    return ", ".join(f"{name}={run.flags[name]}" for name in names) or "all"


def latency_chart(episodes: Sequence[EpisodeResult]) -> str:
    """How many of the chunks took at most so long; empty without a chunk."""
    latencies_ms = np.sort([1000 * chunk.latency_s for episode in episodes for chunk in episode.chunks])
    if not len(latencies_ms):
        return ""
    shares = 100 * np.arange(1, len(latencies_ms) + 1) / len(latencies_ms)
    keep = np.unique(np.linspace(0, len(latencies_ms) - 1, 200).astype(int))
    points = [Point(float(latencies_ms[i]), float(shares[i])) for i in keep]
    return line_chart(
        [Line("chunks", points, marks=False)],
        title="Latency of chunks",
        x_label="latency of a chunk, ms, from its observation's capture to its arrival",
        y_label="chunks that took at most that, %",
        y_top=100.0,
    )


def queue_chart(episodes: Sequence[EpisodeResult]) -> str:
    """The queue over the first episode; empty without a step."""
    if not episodes or not episodes[0].length:
        return ""
    sizes = queue_sizes(episodes[0])
    points = [Point(float(step), float(size)) for step, size in enumerate(sizes)]
    return line_chart(
        [Line("queue", points, marks=False)],
        title="Queued actions",
        x_label=f"step of {episodes[0].spec.name}",
        y_label="queued actions",
    )


def queue_sizes(episode: EpisodeResult) -> list[int]:
    """Queued actions at each step's action, after what took effect before it; from the chunks alone."""
    merges = {}
    for chunk in episode.chunks:
        # What is queued beyond a chunk's end stays.
        merges[chunk.merged_step] = max(chunk.queued, chunk.length - chunk.stale)
    sizes, queued = [], 0
    for step in range(episode.length):
        queued = merges.get(step, queued)
        sizes.append(queued)
        queued = max(0, queued - 1)
    return sizes
