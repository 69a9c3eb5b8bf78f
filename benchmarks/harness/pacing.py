"""Runs exchanges against each other: in a tight loop, or paced as an environment paces them, with cold caches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from harness.exchanges import Exchange
from harness.floor import Floor
from harness.resources import cpu_ns, peak_rss_mb, reset_peak_rss

__all__ = ["ENVIRONMENT_RATE_HZ", "run_paced", "run_tight"]

ENVIRONMENT_RATE_HZ = 20.0
"""LIBERO's."""

_WARMUP = 10
_ROUNDS = 10
_CACHE_BYTES = 64 * 2**20
_CACHE_LINE_BYTES = 64


def run_tight(exchanges: Sequence[Exchange | Floor], count: int, rounds: int = _ROUNDS) -> None:
    """Exchange after exchange: ``rounds`` rounds, in each of which every one has its turn, in changing order.

    Args:
        exchanges: Whose series grow by the rounds.
        count: Exchanges of each in all.
        rounds: How often they take turns.
    """
    per_round = -(-count // rounds)
    for number in range(rounds):
        turn = number % len(exchanges)
        for exchange in [*exchanges[turn:], *exchanges[:turn]]:
            if isinstance(exchange, Floor):
                exchange.run_round(_WARMUP, per_round)
            else:
                _run_round(exchange, per_round)


def run_paced(exchanges: Sequence[Exchange], count: int, rounds: int = _ROUNDS) -> None:
    """Every exchange happens `ENVIRONMENT_RATE_HZ` times a second (less often where it cannot), all of them in turn, a
    sweep through more memory than the caches hold before each.

    Args:
        exchanges: Whose series grow by the rounds.
        count: Exchanges of each in all.
        rounds: Parts in which the figures are taken.
    """
    per_round = -(-count // rounds)
    interval_s = 1.0 / ENVIRONMENT_RATE_HZ / len(exchanges)
    sweep = _CacheSweep()
    _run_turns(exchanges, min(_WARMUP, per_round), interval_s, sweep)
    for _ in range(rounds):
        durations_ns, cpu = _run_turns(exchanges, per_round, interval_s, sweep)
        for exchange, own_durations_ns, own_cpu_ns in zip(exchanges, durations_ns, cpu, strict=True):
            exchange.series.add(own_durations_ns, own_cpu_ns)


def _run_round(exchange: Exchange, count: int) -> None:
    once, pids = exchange.once, (os.getpid(), exchange.server_pid)
    for _ in range(min(_WARMUP, count)):
        once()
    reset_peak_rss(*pids)
    durations_ns = np.empty(count, np.int64)
    before_ns = sum(map(cpu_ns, pids))
    for index in range(count):
        durations_ns[index] = once()
    exchange.series.add(durations_ns, sum(map(cpu_ns, pids)) - before_ns)
    exchange.check()
    for who, pid in zip(("client", "server"), pids, strict=True):
        peak = max(peak_rss_mb(pid), exchange.series.peak_rss_mb.get(who, 0.0))
        exchange.series.peak_rss_mb[who] = peak


def _run_turns(
    exchanges: Sequence[Exchange], count: int, interval_s: float, sweep: _CacheSweep
) -> tuple[np.ndarray, list[int]]:
    durations_ns = np.empty((len(exchanges), count), np.int64)
    cpu = [0] * len(exchanges)
    due_s = time.monotonic()
    for index in range(count):
        for position, exchange in enumerate(exchanges):
            due_s = max(due_s + interval_s, time.monotonic())
            sweep()
            time.sleep(max(0.0, due_s - time.monotonic()))
            pids = (os.getpid(), exchange.server_pid)
            before_ns = sum(map(cpu_ns, pids))
            durations_ns[position, index] = exchange.once()
            cpu[position] += sum(map(cpu_ns, pids)) - before_ns
    for exchange in exchanges:
        exchange.check()
    return durations_ns, cpu


class _CacheSweep:
    """Reads one byte of every cache line of more memory than the caches hold, as a renderer does in passing."""

    def __init__(self) -> None:
        self._lines = np.ones(_CACHE_BYTES, np.uint8)[::_CACHE_LINE_BYTES]

    def __call__(self) -> None:
        self._lines.sum()
