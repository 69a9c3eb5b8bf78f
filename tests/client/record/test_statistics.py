"""The figures over the episodes of a run."""

from __future__ import annotations

import math

import pytest
from small_result import small_result

from async_delta_inference.client.record.statistics import async_figures, success_interval


def test_figures() -> None:
    figures = async_figures(small_result().episodes)
    assert figures["chunks"] == 2
    assert figures["asynchronous_chunks"] == 1
    assert figures["starved_steps"] == 2
    assert figures["late_chunks"] == 1
    assert figures["mean_length"] == 2.0
    assert figures["control_hz"] == 8 / 4.0
    assert figures["mean_delay_steps"] == 1.5
    assert figures["latency_p50_s"] == pytest.approx(0.2)


def test_nothing_done_is_not_a_number() -> None:
    figures = async_figures([])
    assert math.isnan(figures["mean_length"])
    assert math.isnan(figures["latency_p99_s"])


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    [([True] * 10, 0.722, 1.0), ([False] * 10, 0.0, 0.278), ([True] * 7 + [False] * 3, 0.397, 0.892)],
)
def test_interval_is_wilsons(successes: list[bool], low: float, high: float) -> None:
    """Against the published formula's values for n = 10."""
    assert success_interval(successes) == pytest.approx((low, high), abs=5e-4)
