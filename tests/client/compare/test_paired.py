"""Paired statistics: published examples, and 200 simulated comparisons of policies whose difference is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from async_delta_inference.client.compare.paired import (
    PairedCounts,
    bootstrap_difference,
    episodes_to_tell,
    mcnemar_p_value,
    newcombe_interval,
)

COMPARISONS = 200
LOWEST_COVERAGE = 0.95 - 3 * math.sqrt(0.95 * 0.05 / COMPARISONS)
"""Three standard errors below what 95 % intervals promise."""


def outcomes(rng: np.random.Generator, pairs: int, broken: float) -> tuple[list[bool], list[bool]]:
    """A policy and the same one, broken a little, on episodes some of which are harder than others.

    Args:
        rng: Where luck comes from.
        pairs: How many episodes.
        broken: Share of its successes that the second one loses.
    """
    difficulty = rng.beta(4.0, 1.5, pairs)  # 0.727 in the mean
    first = rng.random(pairs) < difficulty
    second = (rng.random(pairs) < difficulty) & (rng.random(pairs) >= broken)
    return first.tolist(), second.tolist()


def simulated(pairs: int, broken: float) -> list[PairedCounts]:
    rng = np.random.default_rng(20251125)
    return [PairedCounts.of(*outcomes(rng, pairs, broken)) for _ in range(COMPARISONS)]


def test_counts_pairs() -> None:
    counts = PairedCounts.of([True, True, False, False, True], [True, False, True, False, False])
    assert (counts.both, counts.only_first, counts.only_second, counts.neither) == (1, 2, 1, 1)
    assert counts.difference == pytest.approx(-0.2)


def test_mcnemar_is_a_sign_test_of_what_differs() -> None:
    assert mcnemar_p_value(PairedCounts(10, 0, 0, 5)) == 1.0
    assert mcnemar_p_value(PairedCounts(10, 6, 0, 5)) == pytest.approx(2 * 0.5**6)
    assert mcnemar_p_value(PairedCounts(0, 1, 8, 0)) == pytest.approx(20 / 512)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe's own examples, first less second there.
        (PairedCounts(36, 12, 2, 0), 0.0569, 0.3404),
        (PairedCounts(54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_newcombes_examples(counts: PairedCounts, low: float, high: float) -> None:
    found = newcombe_interval(counts)
    assert (-found[1], -found[0]) == pytest.approx((low, high), abs=2e-4)


def test_newcombe_turns_with_the_order_of_the_runs() -> None:
    low, high = newcombe_interval(PairedCounts(20, 9, 3, 8))
    assert newcombe_interval(PairedCounts(20, 3, 9, 8)) == pytest.approx((-high, -low))


def test_without_pairs_nothing_is_known() -> None:
    assert all(math.isnan(end) for end in newcombe_interval(PairedCounts(0, 0, 0, 0)))
    assert math.isnan(PairedCounts(0, 0, 0, 0).difference)


@pytest.mark.parametrize(("pairs", "broken"), [(20, 0.0), (50, 0.0), (50, 0.15), (50, 0.4)])
def test_newcombes_interval_holds_its_level(pairs: int, broken: float) -> None:
    difference = -broken * 4.0 / 5.5
    intervals = map(newcombe_interval, simulated(pairs, broken))
    assert np.mean([low <= difference <= high for low, high in intervals]) >= LOWEST_COVERAGE


@pytest.mark.parametrize("pairs", [20, 50])
def test_mcnemar_holds_its_level(pairs: int) -> None:
    p_values = [mcnemar_p_value(counts) for counts in simulated(pairs, broken=0.0)]
    assert np.mean([p < 0.05 for p in p_values]) <= 0.05 + 3 * math.sqrt(0.95 * 0.05 / COMPARISONS)


def test_as_many_episodes_as_it_says_tell_a_difference() -> None:
    broken = 0.35
    wanted = episodes_to_tell(PairedCounts.of(*outcomes(np.random.default_rng(1), 20_000, broken)), broken * 4.0 / 5.5)
    told = np.mean([mcnemar_p_value(counts) < 0.05 for counts in simulated(wanted, broken)])
    # The exact test is more careful than the formula's approximate one.
    assert 0.8 - 0.13 <= told <= 0.8 + 0.09


def test_smaller_differences_need_more_episodes() -> None:
    counts = PairedCounts(30, 5, 4, 11)
    needed = [episodes_to_tell(counts, difference) for difference in (0.3, 0.1, 0.03)]
    assert needed == sorted(needed)
    assert needed[0] < 50 < needed[1] < 300 < needed[2]


def test_bootstrap_intervals_hold_their_level() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(COMPARISONS):
        first = rng.gamma(4.0, 10.0, 40)
        second = first + rng.gamma(2.0, 3.0, 40)
        interval = bootstrap_difference(first.tolist(), second.tolist(), resamples=499)
        assert interval is not None
        assert interval.low is not None
        assert interval.high is not None
        found.append(interval.low <= 6.0 <= interval.high)
    # Of 40 skewed differences a bootstrap covers a little less than it says.
    assert np.mean(found) >= LOWEST_COVERAGE - 0.02


def test_bootstrap_takes_pairs_that_have_both() -> None:
    interval = bootstrap_difference([1.0, None, 3.0, 4.0], [2.0, 5.0, None, 7.0])
    assert interval is not None
    assert (interval.pairs, interval.difference) == (2, 2.0)
    assert bootstrap_difference([None, 1.0], [1.0, None]) is None


def test_bootstrap_of_equal_differences_has_no_interval() -> None:
    interval = bootstrap_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert interval is not None
    assert (interval.difference, interval.low, interval.high) == (1.0, None, None)


def test_bootstrap_is_the_same_every_time() -> None:
    first, second = [1.0, 2.0, 4.0, 8.0], [1.5, 2.0, 5.0, 7.0]
    assert bootstrap_difference(first, second) == bootstrap_difference(first, second)
