"""Random numbers that belong to a session: seeded for each inference, or one stream as lerobot-eval has it.

Policies draw from torch's global generators. So do all that are loaded, and whoever draws changes what the next one
gets: each inference therefore begins with numbers of its own session's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["NoiseSource", "RandomState", "RequestNoise", "StreamNoise", "random_state", "seed_of"]

RandomState = tuple[torch.Tensor, list[torch.Tensor]]
"""Of the CPU's generator, and of every CUDA device's."""


def random_state() -> RandomState:
    """The global generators as they are."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: RandomState) -> None:
    """Put the global generators back."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """What is drawn within has not been drawn afterwards."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def seed_of(seed: int, episode: int, step: int) -> int:
    """The seed of one inference: 63 bits that depend on all three, alike on every machine."""
    digest = hashlib.blake2b(f"{seed} {episode} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class NoiseSource:
    """Sets the generators before an inference, and looks at them afterwards; this one leaves them alone."""

    goes_on = False
    """Whether an inference begins where the one before it ended."""

    def before(self, episode: int, step: int) -> None:
        """An inference begins.

        Args:
            episode: The observation's.
            step: Counted from the first observation of the episode.
        """

    def after(self, state: RandomState | None = None) -> None:
        """It has ended, whatever came of it.

        Args:
            state: The generators as it left them; None: as they are now.
        """


class RequestNoise(NoiseSource):
    """Seeds every inference by itself.

    Args:
        seed: Of the session.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before(self, episode: int, step: int) -> None:  # noqa: D102
        torch.manual_seed(seed_of(self._seed, episode, step))


class StreamNoise(NoiseSource):
    """One stream for all inferences of a session, whoever else is served in between.

    Args:
        state: Where it begins: as the policy's construction left the generators.
    """

    goes_on = True

    def __init__(self, state: RandomState) -> None:
        self._state = state

    def before(self, episode: int, step: int) -> None:  # noqa: D102
        set_random_state(self._state)

    def after(self, state: RandomState | None = None) -> None:  # noqa: D102
        self._state = state or random_state()
