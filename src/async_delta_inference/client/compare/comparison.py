"""`Comparison`: what two runs of the same episodes tell about a difference, per task and overall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from async_delta_inference.client.compare.paired import (
    BootstrapInterval,
    PairedCounts,
    bootstrap_difference,
    mcnemar_p_value,
    newcombe_interval,
)
from async_delta_inference.client.compare.runs import FinishedRun
from async_delta_inference.client.compare.sequential import DifferenceTest
from async_delta_inference.client.record.results import EpisodeFigures, EpisodeResult

__all__ = ["Comparison", "PartComparison", "compare_runs"]

FIGURES = ("steps_to_completion", "reaction_latency_steps", "action_jerk", "state_jerk", "switch_jump", "stale_share")
"""Compared as paired differences."""

Pair = tuple[EpisodeResult, EpisodeResult]


@dataclass(frozen=True, slots=True)
class PartComparison:
    """The pairs of a task, or of all tasks.

    Args:
        name: Of the task, or ``overall``.
        counts: Of the pairs whose success is known in both runs.
        p_value: Of the exact McNemar test, for a number of episodes that was fixed before.
        interval: Newcombe's, 95 %, of the difference of the success rates, second less first.
        figures: Paired differences, by name; None where no pair has both.
    """

    name: str
    counts: PairedCounts
    p_value: float
    interval: tuple[float, float]
    figures: dict[str, BootstrapInterval | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs.

    Args:
        tasks: One a task.
        overall: All pairs.
        sequential_p_value: Of all pairs in the order of the run; holds where the run was ended when it told something.
        unpaired: Episodes that only one of the runs has.
        repeatable: Whether the same seed and actions gave the same in both; None where nobody tried. Where not, a pair
            has nothing in common but its number: what is said of success holds all the same, and takes more episodes.
    """

    tasks: list[PartComparison]
    overall: PartComparison
    sequential_p_value: float
    unpaired: int
    repeatable: bool | None = None


def compare_runs(first: FinishedRun, second: FinishedRun) -> Comparison:
    """Pair two comparable runs by episode."""
    shared = sorted(first.episodes.keys() & second.episodes.keys())
    pairs = [(first.episodes[key], second.episodes[key]) for key in shared]
    tasks = dict.fromkeys((group, task_id) for group, task_id, _ in shared)
    test = DifferenceTest()
    for one, other in _known(pairs):
        test.take(one, other)
    return Comparison(
        tasks=[
            _part(f"{group}/{task_id}", [p for p in pairs if (p[0].task_group, p[0].task_id) == (group, task_id)])
            for group, task_id in tasks
        ],
        overall=_part("overall", pairs),
        sequential_p_value=test.p_value,
        unpaired=len(first.episodes.keys() ^ second.episodes.keys()),
        repeatable=_both(first.repeatable, second.repeatable),
    )


def _both(first: bool | None, second: bool | None) -> bool | None:
    if first is False or second is False:
        return False
    return None if first is None or second is None else True


def _known(pairs: Sequence[Pair]) -> list[tuple[bool, bool]]:
    return [(a.success, b.success) for a, b in pairs if a.success is not None and b.success is not None]


def _part(name: str, pairs: Sequence[Pair]) -> PartComparison:
    known = _known(pairs)
    counts = PairedCounts.of([first for first, _ in known], [second for _, second in known])
    return PartComparison(
        name=name,
        counts=counts,
        p_value=mcnemar_p_value(counts),
        interval=newcombe_interval(counts),
        figures={figure: _difference(pairs, figure) for figure in FIGURES},
    )


def _difference(pairs: Sequence[Pair], figure: str) -> BootstrapInterval | None:
    return bootstrap_difference(
        [_value(first.figures, figure) for first, _ in pairs], [_value(second.figures, figure) for _, second in pairs]
    )


def _value(figures: EpisodeFigures | None, name: str) -> float | None:
    value: float | None = None if figures is None else getattr(figures, name)
    return value
