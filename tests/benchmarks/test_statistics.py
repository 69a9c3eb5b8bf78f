"""Figures and ratios of rounds."""

from __future__ import annotations

import numpy as np
import pytest
from harness.statistics import Series, median_ratio, row_of


def series(transport: str, *rounds: list[int], mode: str = "copy", cpu_ns: int | None = 2000) -> Series:
    one = Series(transport, mode, "libero")
    for durations_us in rounds:
        one.add(np.array(durations_us) * 1000, cpu_ns)
    return one


def test_ratios_are_taken_per_round() -> None:
    """A round in which the machine was slow for everybody does not move the ratio."""
    ratio = median_ratio(np.array([10.0, 100.0, 12.0]), np.array([5.0, 50.0, 4.0]))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 3.0)


def test_row_has_percentiles_of_all_rounds_and_ratios_to_its_peers() -> None:
    floor, grpc = series("floor", [1, 1], [1, 1], cpu_ns=None), series("grpc", [200, 200], [200, 200], cpu_ns=800_000)
    shm = series("shm", [2, 2], [2, 4])
    row = row_of(shm, [floor, grpc, shm])
    assert row["n"] == 4
    assert (row["p50_us"], row["max_us"]) == (2.0, 4.0)
    assert row["cpu_us"] == 1.0
    assert row["ratios"]["p50_to_floor"]["median"] == pytest.approx(2.5)
    assert row["ratios"]["grpc_p50_to_this"]["high"] == pytest.approx(100)
    assert row["ratios"]["grpc_cpu_to_this"]["median"] == pytest.approx(400)


def test_floor_has_no_cpu_time() -> None:
    floor = series("floor", [1], cpu_ns=None)
    assert row_of(floor, [floor])["cpu_us"] is None


def test_floor_of_another_placement_is_no_peer() -> None:
    floor, fast_floor, shm = series("floor", [50], cpu_ns=None), series("floor", [2], cpu_ns=None), series("shm", [10])
    fast_floor.cores = shm.cores = "one"
    assert row_of(shm, [floor, fast_floor, shm])["ratios"]["p50_to_floor"]["median"] == pytest.approx(5)


def test_series_of_another_payload_is_no_peer() -> None:
    other = series("floor", [1])
    other.payload = "state"
    shm = series("shm", [2])
    assert row_of(shm, [other, shm])["ratios"] == {}


def test_forward_pass_is_taken_out_exchange_by_exchange() -> None:
    grpc, shm = series("grpc", [1010, 2010]), series("shm", [1001, 2001])
    for one in (grpc, shm):
        one.forward_ns.append(np.array([1_000_000, 2_000_000]))
    row = row_of(shm, [grpc, shm])
    assert row["without_forward_p50_us"] == 1.0
    assert row["ratios"]["grpc_without_forward_to_this"]["median"] == pytest.approx(10)
