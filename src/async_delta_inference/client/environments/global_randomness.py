"""Simulators that draw from the generators of the whole process: an episode brings its own state of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from async_delta_inference.client.environments.episode import EpisodeSpec

__all__ = ["global_generators_of"]


@contextmanager
def global_generators_of(spec: EpisodeSpec) -> Iterator[None]:
    """Within the block Python's and NumPy's global generators begin where the specification says.

    So a simulator that draws from them gives the same episode whatever ran before. After the block they go on as if
    nothing had been drawn. PyTorch's are left alone: they are the policy's. Without a seed all are.

    Args:
        spec: The episode that is about to be reset.
    """
    if spec.seed is None:
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()
    start = np.random.SeedSequence([spec.seed, spec.number])
    random.seed(int(start.generate_state(1, np.uint64)[0]))
    np.random.seed(start.generate_state(4))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
