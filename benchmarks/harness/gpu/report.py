"""``gpu.md``: a run's results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.gpu.targets import Results, judged

__all__ = ["markdown"]

_TRANSPORT = ("transport", "mode", "n", "p50_us", "p99_us", "cpu_us")
_AROUND = (
    *("stack", "chunks", "total_p50_us", "forward_p50_us", "without_forward_p50_us", "without_forward_p99_us"),
    "grpc_without_forward_to_this",
)
_STAGES = ("transport", "stage", "n", "p50_us", "p99_us")
_BATCHES = ("policy", "batch_size", "forward_p50_ms", "forward_p99_ms", "samples_per_s", "peak_memory_mb", "error")
_SESSIONS = (
    *("policy", "sessions", "max_batch", "chunks_per_s", "rate_to_one_session", "latency_p50_ms", "latency_p99_ms"),
    *("mean_batch_size", "forward_p50_ms", "gpu_busy_share"),
)
_TARGETS = ("what", "target", "measured", "verdict")


def markdown(results: Results) -> str:
    """Everything that was measured; what was not is left out."""
    machine, around = results["machine"], results.get("around_forward") or {}
    lines = ["# On a GPU", "", *_facts(machine | (machine["gpu"] or {}) | results["settings"])]
    lines += _section("Targets", _TARGETS, judged(results))
    lines += _section("The transport alone, no policy", _TRANSPORT, results.get("transport"))
    lines += _section("Around the forward pass of an ACT", _AROUND, around.get("rows"))
    if around.get("rows"):
        difference = _cell(around["most_action_difference"])
        lines += ["", f"The three stacks' actions differ by {difference} at the most, where they saw the same."]
    lines += _section("Its stages", _STAGES, around.get("stages"))
    lines += _section("Policies", ("policy", "parameters", "parameters_by_dtype", "device"), results.get("policies"))
    lines += _section("Forward passes", _BATCHES, results.get("batches"))
    lines += _section("Sessions", _SESSIONS, results.get("sessions"))
    lines += _section("The trace", None, [results["trace"]] if results.get("trace") else None)
    parts = [{"part": name, **found} for name, found in results["parts"].items()]
    lines += _section("Parts of the run", ("part", "state", "seconds", "error"), parts)
    return "\n".join([*lines, "", "![figures](gpu.png)", ""])


def _facts(facts: dict[str, Any]) -> list[str]:
    return [f"- {name}: {_cell(value)}" for name, value in facts.items() if name != "gpu"]


def _section(title: str, columns: Sequence[str] | None, rows: Iterable[dict[str, Any]] | None) -> list[str]:
    rows = list(rows or ())
    if not rows:
        return []
    columns = list(rows[0]) if columns is None else [name for name in columns if any(name in row for row in rows)]
    cells = [" | ".join(_cell(row.get(name)) for name in columns) for row in rows]
    return ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"] + [
        f"| {line} |" for line in cells
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, str):  # The last line of an error says what it is.
        return value.strip().rpartition("\n")[2].replace("|", "/")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
