"""``--check_repeatable``: whether the same seed and actions give the same, tried before it is relied on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.global_randomness import global_generators_of

__all__ = ["is_repeatable"]

logger = logging.getLogger(__name__)

STEPS = 10


def is_repeatable(make: Callable[[], Sequence[Environment]], seed: int) -> bool:
    """Run a few steps of the first task twice, by simulators of their own; say what differs, if anything does.

    Args:
        make: Makes the environments of a run, anew.
        seed: Of the episode.

    Raises:
        EpisodeError: A simulator failed.
    """
    first, second = (_tried(make(), seed) for _ in range(2))
    for step, (one, other) in enumerate(zip(first, second, strict=True)):
        if one != other:
            logger.warning(
                "not repeatable: the same seed and actions gave something else the second time, from step %d on: pairs "
                "of episodes by seed mean nothing here",
                step,
            )
            return False
    return True


def _tried(environments: Sequence[Environment], seed: int) -> list[tuple[object, ...]]:
    environment = environments[0]
    told: list[tuple[object, ...]] = []
    try:
        spec = environment.episode(0, seed)
        with global_generators_of(spec):
            environment.reset(spec)
            told.append((environment.state().tobytes(),))
            for step in range(STEPS):
                outcome = environment.step(_action(environment.action_dim, step))
                told.append((outcome, environment.state().tobytes()))
                if outcome.terminated or outcome.truncated:
                    break
    finally:
        for each in environments:
            each.close()
    # One that ended earlier differs there.
    return told + [()] * (STEPS + 1 - len(told))


def _action(action_dim: int, step: int) -> NDArray[np.float32]:
    return np.random.default_rng((7, step)).uniform(-0.5, 0.5, action_dim).astype(np.float32)
