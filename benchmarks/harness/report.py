"""A run's results for people: tables in the terminal and in ``latency.md``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.limits import ABSOLUTE_LIMITS, LIMITS, Finding, check_limits

__all__ = ["findings_table", "markdown", "print_results"]

Results = dict[str, Any]
_COLUMNS = ("transport", "mode", "payload", "policy", "pacing", "level", "cores", "n")
_FIGURES = ("p50_us", "p90_us", "p99_us", "p999_us", "max_us", "cpu_us")
_RATIOS = {
    "p50_to_floor": "x floor",
    "p50_to_echo": "x echo",
    "grpc_p50_to_this": "gRPC/this p50",
    "grpc_p99_to_this": "p99",
}


def print_results(results: Results, console: Console) -> None:
    """The rows and the limits."""
    console.print(_rich_table("Latency, us", *_row_cells(results["rows"])))
    console.print(findings_table(_findings(results)))


def findings_table(findings: Iterable[Finding]) -> Table:
    """Measured against promised."""
    return _rich_table("Limits", *_finding_cells(findings))


def markdown(results: Results) -> str:
    """``latency.md``."""
    environment = results["environment"]
    lines = ["# Latency", "", *(f"- {name}: {value}" for name, value in environment.items()), ""]
    lines += ["## Rows", "", "Microseconds; ratios are medians over the rounds.", ""]
    lines += _markdown_table(*_row_cells(results["rows"]))
    lines += ["", "## Limits", "", *_markdown_table(*_finding_cells(_findings(results)))]
    lines += ["", "## Stages", "", "Median, microseconds.", "", *_markdown_table(*_stage_cells(results["stages"]))]
    pictures = ("cdf", "bars", "stages")
    lines += ["", *(f"![{name}](latency_{name}.png)" for name in pictures)]
    return "\n".join(lines) + "\n"


def _findings(results: Results) -> list[Finding]:
    return check_limits(results, LIMITS + ABSOLUTE_LIMITS)


def _row_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    cells = [
        [*(str(row[name]) for name in _COLUMNS), *(_number(row[name]) for name in _FIGURES)]
        + [_number(row["ratios"].get(name, {}).get("median")) for name in _RATIOS]
        for row in rows
    ]
    return [*_COLUMNS, *(name.removesuffix("_us") for name in _FIGURES), *_RATIOS.values()], cells


def _finding_cells(findings: Iterable[Finding]) -> tuple[list[str], list[list[str]]]:
    cells = [
        [
            finding.limit.what,
            f"{'at least' if finding.limit.at_least else 'at most'} {finding.limit.limit:g}",
            _number(finding.measured),
            "" if finding.spread is None else " to ".join(map(_number, finding.spread)),
            "not in this run" if finding.measured is None else ("yes" if finding.kept else "NO"),
        ]
        for finding in findings
    ]
    return ["what", "limit", "measured", "rounds", "kept"], cells


def _stage_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(row["stage"] for row in rows))
    combinations: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["transport"], row["payload"], row["policy"], row["pacing"])
        combinations.setdefault(key, {})[row["stage"]] = row["p50_us"]
    cells = [[*key, *(_number(found.get(name)) for name in names)] for key, found in combinations.items()]
    return ["transport", "payload", "policy", "pacing", *names], cells


def _rich_table(title: str, header: list[str], cells: list[list[str]]) -> Table:
    table = Table(title=title)
    for name in header:
        table.add_column(name)
    for row in cells:
        table.add_row(*row)
    return table


def _markdown_table(header: list[str], cells: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]


def _number(value: float | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
