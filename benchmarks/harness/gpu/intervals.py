"""Sets of moments as intervals: how long their union lasts, and how much of one lies within another."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Interval", "covered", "length", "overlap"]

Interval = tuple[float, float]
"""Start and end, in any one unit."""


def covered(intervals: Iterable[Interval]) -> list[Interval]:
    """The union, as disjoint intervals in order."""
    union: list[Interval] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union


def length(intervals: Iterable[Interval]) -> float:
    """How long the union lasts; what several cover counts once."""
    return sum(end - start for start, end in covered(intervals))


def overlap(some: Iterable[Interval], others: Iterable[Interval]) -> float:
    """How long both unions last at once."""
    left, right = covered(some), covered(others)
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return total
