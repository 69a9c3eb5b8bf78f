"""How much time a part of a run may take: its share of what is left, so that what one saves the next ones have."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Budget", "shares_of"]


class Budget:
    """The time of one part.

    Args:
        seconds: That it may take from now on.
        whole: What it is a part of, and which is cut short when it is.
    """

    def __init__(self, seconds: float, whole: Budget | None = None) -> None:
        self._whole = whole
        self._deadline_s = time.monotonic() + seconds
        self.longest_step_s = 0.0
        """Of `step`, so far."""
        self.was_cut_short = False
        """Whether `allows` has said no."""

    @property
    def left_s(self) -> float:
        """Seconds; below 0 once it is used up."""
        return self._deadline_s - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether there is time for something that takes so long."""
        allowed = self.left_s > seconds
        if not allowed:
            self.was_cut_short = True
            if self._whole is not None:
                self._whole.was_cut_short = True
        return allowed

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it is one of several steps that take about as long as each other."""
        start_s = time.monotonic()
        yield
        self.longest_step_s = max(self.longest_step_s, time.monotonic() - start_s)


def shares_of(left_s: float, weights: Mapping[str, float], part: str) -> float:
    """Seconds of those left that a part may take, when it and those after it in ``weights`` are still to come."""
    names = list(weights)
    return left_s * weights[part] / sum(weights[name] for name in names[names.index(part) :])
