"""Statistics of two runs whose episodes are paired: the same initial states and seeds. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.record.statistics import success_interval

__all__ = [
    "BootstrapInterval",
    "PairedCounts",
    "bootstrap_difference",
    "episodes_to_tell",
    "mcnemar_p_value",
    "newcombe_interval",
]


_ROUNDING = 1e-9
"""Differences that differ by less of the values themselves are all the same."""


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """How pairs of episodes ended.

    Args:
        both: Both succeeded.
        only_first: The first run's alone did.
        only_second: The second run's alone did.
        neither: Neither did.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
        """Count pairs: element i of both is the same episode."""
        pairs = list(zip(first, second, strict=True))
        return cls(
            both=sum(a and b for a, b in pairs),
            only_first=sum(a and not b for a, b in pairs),
            only_second=sum(b and not a for a, b in pairs),
            neither=sum(not a and not b for a, b in pairs),
        )

    @property
    def pairs(self) -> int:
        """How many."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the second run less that of the first; NaN without pairs."""
        return (self.only_second - self.only_first) / self.pairs if self.pairs else math.nan


def mcnemar_p_value(counts: PairedCounts) -> float:
    """Two-sided p-value of the exact McNemar test: that both runs succeed equally often.

    Under that hypothesis the pairs that ended differently are fair coins: a binomial test of them with p = 1/2, the
    exact form of McNemar's test (Psychometrika 12, 1947). 1 where no pair differs.
    """
    discordant = counts.only_first + counts.only_second
    if not discordant:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(counts.only_first, discordant, 0.5).pvalue)


def newcombe_interval(counts: PairedCounts) -> tuple[float, float]:
    """95 % interval of the difference of two success rates that are paired, second less first, within [-1, 1].

    Method 10 of Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired
    data, Statistics in Medicine 17, 1998: Wilson's intervals of the two rates, squared and added, less what the pairs
    share (phi, with his continuity correction). (nan, nan) without pairs.
    """
    n = counts.pairs
    if not n:
        return math.nan, math.nan
    first, second = counts.both + counts.only_first, counts.both + counts.only_second
    (low_1, high_1), (low_2, high_2) = (_wilson(successes, n) for successes in (first, second))
    p_1, p_2 = first / n, second / n
    phi = _corrected_phi(counts)
    below = _rest(p_2 - low_2, high_1 - p_1, phi)
    above = _rest(high_2 - p_2, p_1 - low_1, phi)
    return counts.difference - below, counts.difference + above


def _rest(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def _wilson(successes: int, n: int) -> tuple[float, float]:
    return success_interval([True] * successes + [False] * (n - successes))


def _corrected_phi(counts: PairedCounts) -> float:
    """Correlation of the pairs; 0 where one run has successes or failures only."""
    e, f, g, h = counts.both, counts.only_first, counts.only_second, counts.neither
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    if not margins:
        return 0.0
    product = e * h - f * g
    if product > 0:
        product = max(product - counts.pairs / 2, 0)  # type: ignore[assignment]
    return product / math.sqrt(margins)


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """A mean of paired differences.

    Args:
        pairs: How many pairs have both values.
        difference: Mean of second less first.
        low: Of the 95 % interval; None where there are fewer than two pairs, or all differences are equal.
        high: The same.
    """

    pairs: int
    difference: float
    low: float | None
    high: float | None


def bootstrap_difference(
    first: Sequence[float | None], second: Sequence[float | None], *, resamples: int = 9999, seed: int = 0
) -> BootstrapInterval | None:
    """The mean of second less first over the pairs that have both, with its 95 % bootstrap interval.

    Pairs are drawn again with replacement; the interval is the bias-corrected and accelerated one (Efron, Better
    bootstrap confidence intervals, JASA 82, 1987), by `scipy.stats.bootstrap`. The seed is fixed: the same runs give
    the same interval.

    Returns:
        None where no pair has both.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    differences: NDArray[np.float64] = np.array([b - a for a, b in pairs], np.float64)
    mean = float(np.mean(differences))
    scale = float(np.max(np.abs(pairs)))
    if len(differences) < 2 or np.ptp(differences) <= _ROUNDING * scale:
        return BootstrapInterval(len(differences), mean, None, None)
    from scipy.stats import bootstrap

    drawn = bootstrap(
        (differences,), np.mean, n_resamples=resamples, rng=np.random.default_rng(seed), method="BCa", batch=1000
    )
    low, high = map(float, drawn.confidence_interval)
    known = math.isfinite(low) and math.isfinite(high)
    return BootstrapInterval(len(differences), mean, *((low, high) if known else (None, None)))


def episodes_to_tell(counts: PairedCounts, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many pairs would have told a given difference of success rates.

    The smallest n at which McNemar's test finds it at level ``alpha`` with probability ``power``, by Connor's formula
    (Sample size for testing differences in proportions for the paired-sample design, Biometrics 43, 1987), with the
    share of pairs that differ estimated from these runs: one differing pair is added on each side, so that runs that
    never differed do not promise too much.

    Args:
        counts: What was seen, for how often pairs differ.
        difference: Of the success rates, in (0, 1].
        power: Probability that a true difference of that size is told.
        alpha: Two-sided error rate.
    """
    from scipy.stats import norm

    discordant = (counts.only_first + counts.only_second + 2) / (counts.pairs + 2)
    discordant = min(1.0, max(discordant, difference))
    z_alpha, z_power = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(0.0, discordant - difference**2))
    return math.ceil((root / difference) ** 2)
