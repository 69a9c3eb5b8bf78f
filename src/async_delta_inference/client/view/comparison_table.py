"""What ``async-delta-compare`` prints."""

from __future__ import annotations

from rich.table import Table

from async_delta_inference.client.compare.comparison import Comparison, PartComparison
from async_delta_inference.client.compare.paired import BootstrapInterval, episodes_to_tell

__all__ = ["NOT_REPEATABLE", "figure_table", "success_table", "verdict"]

NOT_REPEATABLE = (
    "This environment is not repeatable: the same seed and actions gave something else the second time. A pair of "
    "episodes has nothing in common but its number, so pairing takes no luck out: the tests hold, as they do for pairs "
    "drawn by lot, and need as many episodes as if nothing were paired."
)
"""Of runs where `Comparison.repeatable` is False."""


def success_table(comparison: Comparison) -> Table:
    """One row a task, and one overall when there are several: pairs, both rates, their difference, McNemar's test.

    The difference is second less first in percentage points, with Newcombe's 95 % interval.
    """
    table = Table(title="Success, paired by episode")
    for column in ("task", "pairs", "first", "second", "only first", "only second", "difference", "95 %", "McNemar p"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for part in _parts(comparison):
        table.add_row(part.name, *_success_cells(part))
    return table


def _success_cells(part: PartComparison) -> list[str]:
    counts = part.counts
    n = counts.pairs
    if not n:
        return ["0", *["n/a"] * 7]
    return [
        str(n),
        f"{100 * (counts.both + counts.only_first) / n:.1f} %",
        f"{100 * (counts.both + counts.only_second) / n:.1f} %",
        str(counts.only_first),
        str(counts.only_second),
        f"{100 * counts.difference:+.1f}",
        f"{100 * part.interval[0]:+.1f} to {100 * part.interval[1]:+.1f}",
        f"{part.p_value:.3g}",
    ]


def figure_table(comparison: Comparison) -> Table:
    """Paired differences of the other figures, second less first, with their 95 % bootstrap intervals."""
    table = Table(title="Other figures: mean of second less first")
    for column in ("task", "figure", "pairs", "difference", "95 %"):
        table.add_column(column, justify="left" if column in ("task", "figure") else "right")
    for part in _parts(comparison):
        for name, difference in part.figures.items():
            table.add_row(part.name, name, *_figure_cells(difference))
        table.add_section()
    return table


def _figure_cells(difference: BootstrapInterval | None) -> list[str]:
    if difference is None:
        return ["0", "n/a", "n/a"]
    known = difference.low is not None and difference.high is not None
    interval = f"{difference.low:+.4g} to {difference.high:+.4g}" if known else "n/a"
    return [str(difference.pairs), f"{difference.difference:+.4g}", interval]


def verdict(comparison: Comparison, difference: float) -> str:
    """In a few sentences: whether a difference was told, and how many episodes would have told one.

    Args:
        comparison: Of two runs.
        difference: Of success rates, in (0, 1].
    """
    part = comparison.overall
    if not part.counts.pairs:
        return "No pair has a known success in both runs: nothing can be said of a difference."
    low, high = part.interval
    told = part.p_value < 0.05
    needed = episodes_to_tell(part.counts, difference)
    said = (
        f"The success rates differ (p = {part.p_value:.3g}): the second is {_better(part.counts.difference)}, by "
        f"{100 * min(abs(low), abs(high)) if low * high > 0 else 0:.1f} to {100 * max(abs(low), abs(high)):.1f} points."
        if told
        else f"No difference of the success rates was told (p = {part.p_value:.3g}); one of up to "
        f"{100 * max(abs(low), abs(high)):.1f} points may be there."
    )
    return (
        f"{said} A difference of {100 * difference:g} points is told in 4 of 5 comparisons of {needed} pairs of "
        f"episodes; there are {part.counts.pairs}."
    )


def _better(difference: float) -> str:
    return "better" if difference > 0 else "worse"


def _parts(comparison: Comparison) -> list[PartComparison]:
    return [*comparison.tasks, comparison.overall] if len(comparison.tasks) > 1 else comparison.tasks
