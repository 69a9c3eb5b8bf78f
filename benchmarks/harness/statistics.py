"""Figures of a series of rounds, and ratios between two series that were measured in the same rounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ratio", "Series", "median_ratio", "row_of"]

Nanoseconds = NDArray[np.int64]


@dataclass
class Series:
    """What was measured of one combination, round by round.

    Args:
        transport: grpc, shm, floor, and the labelled variants of them.
        mode: copy or loan.
        payload: Name.
        policy: null or act.
        pacing: tight or paced.
        level: transport or client.
        cores: Where both processes ran: on one core, on two, or on any that the kernel chose.
        rounds: Durations of each round's exchanges, ns.
        cpu_ns: CPU time of both processes together, of each round; None where it is not known.
        forward_ns: Of each exchange, what the policy's forward pass took of it, where that was recorded.
        peak_rss_mb: Of client and server process.
    """

    transport: str
    mode: str
    payload: str
    policy: str = "null"
    pacing: str = "tight"
    level: str = "transport"
    cores: str = "any"
    rounds: list[Nanoseconds] = field(default_factory=list)
    cpu_ns: list[int | None] = field(default_factory=list)
    forward_ns: list[Nanoseconds] = field(default_factory=list)
    peak_rss_mb: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What two series must share to be compared: payload, policy, pacing, level, cores."""
        return self.payload, self.policy, self.pacing, self.level, self.cores

    def add(self, durations_ns: Nanoseconds, cpu_ns: int | None) -> None:
        """One more round."""
        self.rounds.append(durations_ns)
        self.cpu_ns.append(cpu_ns)

    def all_us(self) -> NDArray[np.float64]:
        """Every duration, us."""
        return np.concatenate(self.rounds) / 1000.0

    def round_percentiles(self, percent: float) -> NDArray[np.float64]:
        """One percentile of each round, us."""
        return np.array([np.percentile(durations, percent) for durations in self.rounds]) / 1000.0

    def round_overheads(self) -> NDArray[np.float64]:
        """Median of each round without the forward pass, us."""
        pairs = zip(self.rounds, self.forward_ns, strict=True)
        return np.array([np.median(durations - forward) for durations, forward in pairs]) / 1000.0

    def round_cpu(self) -> NDArray[np.float64]:
        """CPU time of both processes per exchange of each round, us; nan where it is not known."""
        rounds = zip(self.cpu_ns, self.rounds, strict=True)
        return np.array([np.nan if cpu is None else cpu / len(rows) / 1000.0 for cpu, rows in rounds])


@dataclass(frozen=True)
class Ratio:
    """How one thing compares to another, taken in each round.

    Args:
        median: Over the rounds.
        low: Smallest of a round.
        high: Largest of a round.
    """

    median: float
    low: float
    high: float


def median_ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> Ratio:
    """Ratios per round, then their median and range; rounds that only one of the two has are left out."""
    count = min(len(numerators), len(denominators))
    ratios = numerators[:count] / denominators[:count]
    return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def row_of(series: Series, others: list[Series]) -> dict[str, Any]:
    """A row of ``latency.json``.

    Args:
        series: What it is about.
        others: Everything measured; the ratios are taken to its floor and from its gRPC.
    """
    durations_us = series.all_us()
    p50, p90, p99, p999 = np.percentile(durations_us, [50, 90, 99, 99.9])
    row: dict[str, Any] = {
        "transport": series.transport,
        "mode": series.mode,
        "payload": series.payload,
        "policy": series.policy,
        "pacing": series.pacing,
        "level": series.level,
        "cores": series.cores,
        "n": len(durations_us),
        "p50_us": _round(p50),
        "p90_us": _round(p90),
        "p99_us": _round(p99),
        "p999_us": _round(p999),
        "max_us": _round(durations_us.max()),
        "cpu_us": None if None in series.cpu_ns else _round(np.median(series.round_cpu())),
        "peak_rss_mb": {who: _round(size) for who, size in series.peak_rss_mb.items()},
        "ratios": {name: asdict(ratio) for name, ratio in _ratios(series, others).items()},
    }
    if series.forward_ns:
        overheads_us = (np.concatenate(series.rounds) - np.concatenate(series.forward_ns)) / 1000.0
        row["without_forward_p50_us"] = _round(np.median(overheads_us))
        row["without_forward_p99_us"] = _round(np.percentile(overheads_us, 99))
    return row


def _ratios(series: Series, others: list[Series]) -> dict[str, Ratio]:
    peers = {other.transport: other for other in others if other.key == series.key}
    ratios: dict[str, Ratio] = {}
    if (floor := peers.get("floor")) and floor is not series:
        ratios["p50_to_floor"] = median_ratio(series.round_percentiles(50), floor.round_percentiles(50))
    if (echo := peers.get("grpc-echo")) and echo is not series:
        ratios["p50_to_echo"] = median_ratio(series.round_percentiles(50), echo.round_percentiles(50))
    if (grpc := peers.get("grpc")) and grpc is not series:
        ratios["grpc_p50_to_this"] = median_ratio(grpc.round_percentiles(50), series.round_percentiles(50))
        ratios["grpc_p99_to_this"] = median_ratio(grpc.round_percentiles(99), series.round_percentiles(99))
        ratios["grpc_cpu_to_this"] = median_ratio(grpc.round_cpu(), series.round_cpu())
        if grpc.forward_ns and series.forward_ns:
            ratios["grpc_without_forward_to_this"] = median_ratio(grpc.round_overheads(), series.round_overheads())
    return ratios


def _round(value: float) -> float:
    return round(float(value), 2)
