"""What the project promises of its latency, as data, and whether a run keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.placement import PLACEMENTS

__all__ = ["LIMITS", "Finding", "Limit", "check_limits"]

Results = dict[str, Any]
"""``latency.json``."""

MAX_GROWTH_MB = 1.0
"""What still counts as flat over 100,000 exchanges: a leak of ten bytes an exchange."""


@dataclass(frozen=True)
class Limit:
    """One promise about one row.

    Args:
        what: For people.
        row: Values that the row has.
        value: Path of keys in it.
        limit: Bound of the value.
        at_least: Whether the bound is a lower one.
    """

    what: str
    row: dict[str, str]
    value: tuple[str, ...]
    limit: float
    at_least: bool = False


@dataclass(frozen=True)
class Finding:
    """A limit and what was measured; None: the run has no such row.

    Args:
        limit: The promise.
        measured: In the unit of the limit.
        spread: Smallest and largest of a round, for a ratio.
    """

    limit: Limit
    measured: float | None
    spread: tuple[float, float] | None = None

    @property
    def kept(self) -> bool:
        """Whether the limit was kept."""
        if self.measured is None:
            return False
        return self.measured >= self.limit.limit if self.limit.at_least else self.measured <= self.limit.limit


def _to_floor(mode: str, payload: str, limit: float, cores: str = "any") -> Limit:
    return Limit(
        f"shm {mode} / C floor, {payload}" + (f", {cores} core{'s' * (cores == 'two')}" if cores != "any" else ""),
        {
            "transport": "shm",
            "mode": mode,
            "payload": payload,
            "policy": "null",
            "pacing": "tight",
            "level": "transport",
            "cores": cores,
        },
        ("ratios", "p50_to_floor"),
        limit,
    )


_SHM_LIBERO = _to_floor("copy", "libero", 0).row
_NATIVE_LIBERO = _SHM_LIBERO | {"transport": "grpc-native"}
_CLIENT_ACT = {
    "transport": "shm",
    "mode": "loan",
    "payload": "libero",
    "policy": "act",
    "pacing": "tight",
    "level": "client",
    "cores": "any",
}

_FLOOR_LIMITS = (
    ("copy", "state", 2.5),
    ("copy", "libero", 2.5),
    ("copy", "3x480x640", 1.4),
    ("copy", "4x1080x1920", 1.15),
    ("loan", "state", 2.5),
    ("loan", "libero", 1.6),
    ("loan", "3x480x640", 0.5),
    ("loan", "4x1080x1920", 0.1),
)

LIMITS = (
    *(_to_floor(*limit, cores) for cores in PLACEMENTS for limit in _FLOOR_LIMITS),
    Limit("gRPC / shm, LIBERO, p50", _SHM_LIBERO, ("ratios", "grpc_p50_to_this"), 100, at_least=True),
    Limit("gRPC / shm, LIBERO, p99", _SHM_LIBERO, ("ratios", "grpc_p99_to_this"), 50, at_least=True),
    Limit("gRPC / shm, LIBERO, CPU time", _SHM_LIBERO, ("ratios", "grpc_cpu_to_this"), 100, at_least=True),
    Limit("LeRobot's gRPC / our own, LIBERO, p50", _NATIVE_LIBERO, ("ratios", "grpc_p50_to_this"), 3.5, at_least=True),
    Limit("our own gRPC / an echo of the same bytes, LIBERO, p50", _NATIVE_LIBERO, ("ratios", "p50_to_echo"), 1.5),
    Limit(
        "SimClient, real ACT, LIBERO: gRPC / shm, without the forward pass",
        _CLIENT_ACT,
        ("ratios", "grpc_without_forward_to_this"),
        10,
        at_least=True,
    ),
)
"""Ratios of one run only: absolute times say more about the machine."""

ABSOLUTE_LIMITS = (
    Limit(
        "SimClient, real ACT, LIBERO: captured to merged without the forward pass, us",
        _CLIENT_ACT,
        ("without_forward_p50_us",),
        1000,
    ),
)
"""Reported, never a reason to fail: a slower machine breaks them without anybody's fault."""


def check_limits(results: Results, limits: tuple[Limit, ...] = LIMITS) -> list[Finding]:
    """Every limit with what was measured; then the memory's growth, where the run measured it."""
    findings = [_find(limit, results["rows"]) for limit in limits]
    for soak in results.get("memory", []):
        what = f"{soak['transport']}: growth of the larger process over {soak['n']} exchanges, MB"
        findings.append(Finding(Limit(what, {}, (), MAX_GROWTH_MB), max(soak["growth_mb"].values())))
    return findings


def _find(limit: Limit, rows: list[dict[str, Any]]) -> Finding:
    for row in rows:
        if all(row[key] == value for key, value in limit.row.items()):
            value: Any = row
            for key in limit.value:
                value = value.get(key) if value is not None else None
            if isinstance(value, dict):
                return Finding(limit, value["median"], (value["low"], value["high"]))
            return Finding(limit, value)
    return Finding(limit, None)
