"""The table of a sweep: a row a combination, a column a figure; for a terminal and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from rich.table import Table

from async_delta_inference.client.record.figures import RunFigures
from async_delta_inference.client.record.results import EpisodeFigures

__all__ = ["Row", "sweep_csv", "sweep_table"]

Row = tuple[Mapping[str, str], RunFigures]
"""The flags of a combination, and what came of it."""

_MEANS = tuple(EpisodeFigures.__dataclass_fields__)
_SHARES = ("stale_share", "starved_share")


def sweep_table(rows: Sequence[Row]) -> Table:
    """For people: rates with their 95 % Wilson intervals, means of the other figures, n/a for what is not known."""
    table = Table(title="Sweep")
    for flag in rows[0][0]:
        table.add_column(flag)
    for column in ("episodes", "success", "95 %", *(name.replace("_", " ") for name in _MEANS)):
        table.add_column(column, justify="right")
    for values, figures in rows:
        means = [_text(figures.means[name], percent=name in _SHARES) for name in _MEANS]
        table.add_row(*values.values(), str(figures.episodes), *_success(figures), *means)
    return table


def _success(figures: RunFigures) -> tuple[str, str]:
    if figures.success_rate is None or figures.success_interval is None:
        return "n/a", "n/a"
    low, high = figures.success_interval
    return f"{figures.successes} of {figures.known}", f"{100 * low:.0f}-{100 * high:.0f} %"


def _text(value: float | None, *, percent: bool) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def sweep_csv(rows: Sequence[Row]) -> str:
    """For programs: all digits, nothing between two commas for what is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*rows[0][0], "episodes", "successes", "known", "success_rate", "low", "high", *_MEANS])
    for values, figures in rows:
        low, high = figures.success_interval or (None, None)
        writer.writerow(
            [
                *values.values(),
                *(figures.episodes, figures.successes, figures.known, figures.success_rate, low, high),
                *(figures.means[name] for name in _MEANS),
            ]
        )
    return text.getvalue()
