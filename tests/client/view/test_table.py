"""The table at the end of a run."""

from __future__ import annotations

import io

from rich.console import Console
from small_result import small_result

from async_delta_inference.client.view.table import result_table


def test_table_has_a_row_per_task_and_one_overall() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result_table(small_result()))
    text = console.export_text()
    for expected in ("spatial/0", "spatial/3", "goal/1", "overall", "50.0 %", "2 (1)"):
        assert expected in text
