"""Sequential tests: their error rate is what they say, and they save episodes; by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from async_delta_inference.client.compare.sequential import DifferenceTest, RateInterval

COMPARISONS = 200
HIGHEST_ERROR = 0.05 + 3 * math.sqrt(0.05 * 0.95 / COMPARISONS)
LONGEST = 500


def stops_after(rng: np.random.Generator, rates: tuple[float, float]) -> int | None:
    """After how many pairs a difference is told; None: not within the longest run."""
    test = DifferenceTest()
    for pair in range(1, LONGEST + 1):
        if test.take(*(rng.random(2) < rates)):
            return pair
    return None


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_a_difference_that_is_none_is_seldom_told_however_often_one_looks(rate: float) -> None:
    rng = np.random.default_rng(11)
    told = [stops_after(rng, (rate, rate)) is not None for _ in range(COMPARISONS)]
    assert np.mean(told) <= HIGHEST_ERROR


def test_looking_at_mcnemars_test_every_time_would_not_hold() -> None:
    """What the sequential test is for: the same runs, looked at after each pair with a test for a fixed number."""
    from scipy.stats import binom

    rng = np.random.default_rng(11)
    told = 0
    for _ in range(COMPARISONS):
        pairs = rng.random((LONGEST, 2)) < 0.5
        first = np.cumsum(pairs[:, 0] & ~pairs[:, 1])
        second = np.cumsum(pairs[:, 1] & ~pairs[:, 0])
        p_values = 2 * binom.cdf(np.minimum(first, second), first + second, 0.5)
        told += bool((p_values < 0.05).any())
    assert told / COMPARISONS > 2 * HIGHEST_ERROR


def test_a_difference_is_told_with_a_fraction_of_the_episodes() -> None:
    """Rates of 0.9 and 0.6: a run of 200 pairs ends after a fifth of them in the mean."""
    rng = np.random.default_rng(12)
    stopped = [stops_after(rng, (0.9, 0.6)) for _ in range(COMPARISONS)]
    known = [pairs for pairs in stopped if pairs is not None]
    assert len(known) == COMPARISONS
    assert np.mean(known) < 0.25 * 200


def test_the_p_value_holds_whenever_one_stops() -> None:
    test = DifferenceTest()
    assert test.p_value == 1.0
    for _ in range(8):
        test.take(True, False)
    assert test.told
    assert test.p_value == pytest.approx(9 / 256)
    test.take(False, True)
    assert test.p_value == pytest.approx(9 / 256)  # What was told is told.


def test_the_interval_of_a_rate_holds_at_all_times_at_once() -> None:
    rng = np.random.default_rng(13)
    left_out = 0
    for _ in range(COMPARISONS):
        interval = RateInterval()
        for success in rng.random(100) < 0.8:
            interval.take(bool(success))
        left_out += not interval.low <= 0.8 <= interval.high
    assert left_out / COMPARISONS <= HIGHEST_ERROR


def test_the_interval_narrows() -> None:
    interval = RateInterval()
    widths = [interval.take(success) for success in [True, True, False, True] * 100]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.9
    assert 0.1 < widths[-1] < 0.2
    assert interval.low < 0.75 < interval.high


def test_all_successes_keep_the_highest_rate() -> None:
    interval = RateInterval()
    for _ in range(20):
        interval.take(True)
    assert interval.high == 1.0
    # (1 - x)^20 * 21 = 1 / 20 at the other end.
    assert interval.low == pytest.approx((0.05 / 21) ** (1 / 20), abs=1e-6)
