"""What the project wants on a GPU, and whether a run has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["TARGETS", "Target", "judged"]

Results = dict[str, Any]
"""``gpu.json``."""

PINNED = "shm-pinned"
POLICY = "smolvla"
SESSIONS = 32


@dataclass(frozen=True)
class Target:
    """One of them.

    Args:
        what: For people.
        bound: Of the value.
        find: The value in the results; None where it was not measured.
        at_least: Whether the bound is a lower one.
    """

    what: str
    bound: float
    find: Callable[[Results], float | None]
    at_least: bool = True

    def verdict(self, results: Results) -> str:
        """met, missed, or n/a where it was not measured, or not on a GPU with policies of published sizes."""
        measured = self.find(results)
        if measured is None or results["machine"]["gpu"] is None or results["settings"]["small"]:
            return "n/a"
        return "met" if (measured >= self.bound if self.at_least else measured <= self.bound) else "missed"


def judged(results: Results) -> list[dict[str, Any]]:
    """Every target with what was measured."""
    return [
        {
            "what": target.what,
            "target": f"at {'least' if target.at_least else 'most'} {target.bound:g}",
            "measured": target.find(results),
            "verdict": target.verdict(results),
        }
        for target in TARGETS
    ]


def _around(*path: str) -> Callable[[Results], float | None]:
    return lambda results: _value(_row((results.get("around_forward") or {}).get("rows"), stack=PINNED), *path)


def _of_sessions(name: str) -> Callable[[Results], float | None]:
    """Of the batches that gave the highest rate."""

    def find(results: Results) -> float | None:
        rows = [row for row in results.get("sessions") or () if (row["policy"], row["sessions"]) == (POLICY, SESSIONS)]
        return _value(max(rows, key=lambda row: float(row["chunks_per_s"]), default=None), name)

    return find


def _row(rows: list[dict[str, Any]] | None, **keys: Any) -> dict[str, Any] | None:
    return next((row for row in rows or () if all(row.get(key) == value for key, value in keys.items())), None)


def _value(row: dict[str, Any] | None, *path: str) -> float | None:
    value: Any = row
    for key in path:
        value = None if value is None else value.get(key)
    return value


TARGETS = (
    Target("ACT, shm pinned: everything but the forward pass, p50, us", 300, _around("without_forward_p50_us"), False),
    Target(
        "ACT: that of PolicyServer over gRPC / that of shm pinned, p50",
        10,
        _around("grpc_without_forward_to_this", "median"),
    ),
    Target("SmolVLA: rate of 32 sessions / rate of one", 8, _of_sessions("rate_to_one_session")),
    Target("SmolVLA, 32 sessions: share of the time in which the GPU computes", 0.85, _of_sessions("gpu_busy_share")),
)
