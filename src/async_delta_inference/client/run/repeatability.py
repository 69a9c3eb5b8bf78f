"""``--check_repeatable``: whether the same seed and actions give the same, tried before it is relied on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.global_randomness import global_generators_of

__all__ = ["NOT_REPEATABLE", "is_repeatable", "taken_together", "warn_unless_repeatable"]

logger = logging.getLogger(__name__)

STEPS = 10
NOT_REPEATABLE = (
    "the same seed and actions gave something else the second time: pairs of episodes by seed mean nothing here"
)


def warn_unless_repeatable(make: Callable[[], Sequence[Environment]], seed: int) -> bool:
    """What `is_repeatable` finds out, said where it is not.

    Raises:
        EpisodeError: A simulator failed.
    """
    repeatable = is_repeatable(make, seed)
    if not repeatable:
        logger.warning("not repeatable: %s", NOT_REPEATABLE)
    return repeatable


def is_repeatable(make: Callable[[], Sequence[Environment]], seed: int) -> bool:
    """Run a few steps of the first task twice, by simulators of their own, and compare what came of them.

    Args:
        make: Makes the environments of a run, anew.
        seed: Of the episode.

    Raises:
        EpisodeError: A simulator failed.
    """
    first, second = (_tried(make(), seed) for _ in range(2))
    return first == second


def taken_together(known: Iterable[bool | None]) -> bool | None:
    """Whether all are repeatable of which it is known; None where it is known of none."""
    answers = [answer for answer in known if answer is not None]
    return all(answers) if answers else None


def _tried(environments: Sequence[Environment], seed: int) -> list[tuple[object, ...]]:
    environment = environments[0]
    told: list[tuple[object, ...]] = []
    try:
        spec = environment.episode(0, seed)
        with global_generators_of(spec):
            environment.reset(spec, render=False)
            told.append((environment.state().tobytes(),))
            for step in range(STEPS):
                outcome = environment.step(_action(environment.action_dim, step), render=False)
                told.append((outcome, environment.state().tobytes()))
                if outcome.terminated or outcome.truncated:
                    break
    finally:
        for each in environments:
            each.close()
    return told


def _action(action_dim: int, step: int) -> NDArray[np.float32]:
    return np.random.default_rng((7, step)).uniform(-0.5, 0.5, action_dim).astype(np.float32)
