"""The table at the end of a run."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from small_result import small_result

from async_delta_inference.client.view.table import result_table


def rows_of(table: Table) -> list[list[str]]:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_table_has_a_row_per_task_and_one_overall() -> None:
    """All figures of one row, in the order of their columns."""
    rows = rows_of(result_table(small_result()))
    assert [row[0] for row in rows] == ["spatial/0", "spatial/3", "goal/1", "overall"]
    assert rows[-1] == [
        *("overall", "4", "50.0 %", "15-85 %", "0.688", "2.0", "2.0", "3", "2 (1)"),
        "200 / 298 ms",
    ]
    assert rows[0][1:4] == ["2", "50.0 %", "9-91 %"]


def test_one_task_needs_no_overall() -> None:
    result = small_result()
    del result.episodes[2:]
    assert [row[0] for row in rows_of(result_table(result))] == ["spatial/0"]
