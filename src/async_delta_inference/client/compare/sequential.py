"""Tests that may be looked at after every episode, and stopped, without a larger error rate.

Both are Robbins' method of mixtures with a uniform mixture (Statistical methods related to the law of the iterated
logarithm, Annals of Mathematical Statistics 41, 1970): a martingale that starts at 1 and, by Ville's inequality,
reaches 1 / alpha with a probability of alpha at most if the hypothesis holds, however long one looks. Snyder et al.
(Beyond binary success, arXiv 2603.13616) compare robot policies by tests of that kind. STEP (arXiv 2503.10966) needs
fewer episodes where their largest number is fixed before, and was not chosen: its rule must be computed for each such
number, and resuming a run changes that.
"""

from __future__ import annotations

import math

__all__ = ["DifferenceTest", "RateInterval"]


def _log_mixture(successes: int, failures: int) -> float:
    """Log of the probability of a sequence of coins whose bias is uniform: log B(successes + 1, failures + 1)."""
    return math.lgamma(successes + 1) + math.lgamma(failures + 1) - math.lgamma(successes + failures + 2)


class DifferenceTest:
    """Whether two paired runs succeed equally often: the pairs that end differently are fair coins, if so.

    It is McNemar's hypothesis, tested after every pair.

    Args:
        alpha: Probability of telling a difference where there is none, at most, over all looks.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        self.alpha = alpha
        self._only_first = self._only_second = 0
        self._largest_log = 0.0

    def take(self, first: bool, second: bool) -> bool:
        """The next pair; returns whether a difference is told by now."""
        self._only_first += first and not second
        self._only_second += second and not first
        self._largest_log = max(self._largest_log, self._log_evidence())
        return self.told

    @property
    def told(self) -> bool:
        """Whether a difference was told."""
        return self._largest_log >= math.log(1 / self.alpha)

    @property
    def p_value(self) -> float:
        """Holds whenever one stops."""
        return math.exp(-self._largest_log)

    def _log_evidence(self) -> float:
        pairs = self._only_first + self._only_second
        return _log_mixture(self._only_first, self._only_second) + pairs * math.log(2)


class RateInterval:
    """An interval of one success rate that holds at all times at once, so that its width may decide when to stop.

    It has every rate p that the method of mixtures does not reject. Wider than Wilson's of the same episodes, which
    holds for a number of episodes that was fixed before.

    Args:
        alpha: Probability that it ever leaves the true rate out, at most.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        self.alpha = alpha
        self.low, self.high = 0.0, 1.0
        self._successes = self._failures = 0

    def take(self, success: bool) -> float:
        """The next episode; returns the width by now, in [0, 1]."""
        self._successes += success
        self._failures += not success
        low, high = self._now()
        # What it left out once, it left out for good.
        self.low, self.high = max(self.low, low), min(self.high, high)
        return self.width

    @property
    def width(self) -> float:
        """In [0, 1]; negative where the rate changed on the way."""
        return self.high - self.low

    def _now(self) -> tuple[float, float]:
        episodes = self._successes + self._failures
        best = self._successes / episodes
        limit = _log_mixture(self._successes, self._failures) - math.log(1 / self.alpha)
        return (
            0.0 if not self._successes else self._root(limit, 0.0, best),
            1.0 if not self._failures else self._root(limit, 1.0, best),
        )

    def _root(self, limit: float, outside: float, inside: float) -> float:
        """Where the likelihood falls to the limit, between a rate outside of the interval and one inside."""
        for _ in range(40):
            middle = (outside + inside) / 2
            if self._log_likelihood(middle) >= limit:
                inside = middle
            else:
                outside = middle
        return outside

    def _log_likelihood(self, rate: float) -> float:
        return sum(
            count * (math.log(p) if p > 0 else -math.inf)
            for count, p in ((self._successes, rate), (self._failures, 1 - rate))
            if count
        )
