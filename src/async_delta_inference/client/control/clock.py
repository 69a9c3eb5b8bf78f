"""When a chunk that was asked for takes effect, and what paces the control loop.

In the *realtime* clock a chunk takes effect when it arrives, and a step lasts ``1 / fps`` at least, as on a robot. In
the *simulated* clock the environment's time is its step count: a chunk asked for before step t takes effect before step
t + d, however fast or slow the server was, and nothing sleeps.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from async_delta_inference.client.environments.episode import EpisodeKey, EpisodeSpec
from async_delta_inference.errors import ConfigError

__all__ = ["Clock", "RealtimeClock", "SimulatedClock"]


class Clock(ABC):
    """One per run."""

    name: ClassVar[str]
    delays: tuple[int, ...] = ()
    """Inference delays in steps that it prescribes; none: a delay is what it is."""

    @abstractmethod
    def due_step(self, step: int) -> int | None:
        """Ask for a chunk before step ``step``.

        Returns:
            The step before which it takes effect, or None for as soon as it arrives.
        """

    def expected_delay(self) -> int | None:
        """Steps until a chunk that is asked for now takes effect, where `due_step` does not say it; None: not known."""
        return None

    def note_latency(self, latency_s: float) -> None:  # noqa: B027 - the simulated clock does not measure
        """A chunk took this long, from the capture of its observation to its arrival."""

    @abstractmethod
    def start_episode(self, spec: EpisodeSpec) -> None:
        """The first step of an episode is about to begin."""

    def wait_for_next_step(self) -> None:  # noqa: B027 - the simulated clock has nothing to wait for
        """A step has ended."""


class RealtimeClock(Clock):
    """Paced by the wall clock.

    Args:
        fps: Control steps per second.
    """

    name = "realtime"

    def __init__(self, fps: float) -> None:
        self._step_s = 1.0 / fps
        self._next_s = 0.0
        self._longest_s = 0.0

    def expected_delay(self) -> int:
        """That of the slowest chunk so far, as lerobot-rollout has it; 0 before the first."""
        return math.ceil(self._longest_s / self._step_s)

    def note_latency(self, latency_s: float) -> None:  # noqa: D102
        self._longest_s = max(self._longest_s, latency_s)

    def due_step(self, step: int) -> int | None:  # noqa: D102
        return None

    def start_episode(self, spec: EpisodeSpec) -> None:  # noqa: D102
        self._next_s = time.monotonic() + self._step_s

    def wait_for_next_step(self) -> None:  # noqa: D102
        now_s = time.monotonic()
        if now_s < self._next_s:
            time.sleep(self._next_s - now_s)
            self._next_s += self._step_s
        else:
            # A step that took too long is not made up for by hurrying, as on a robot.
            self._next_s = now_s + self._step_s


class SimulatedClock(Clock):
    """Paced by the environment's step count.

    Args:
        delays: Inference delay in steps of each request of an episode, in order; begins anew when used up, and with
            every episode: a delay follows from the episode, not from what was run before it.
        by_episode: The same for single episodes that have delays of their own.

    Raises:
        ConfigError: No delay, or a negative one.
    """

    name = "simulated"

    def __init__(self, delays: Sequence[int], by_episode: Mapping[EpisodeKey, Sequence[int]] | None = None) -> None:
        self._by_episode = by_episode or {}
        for listed in (delays, *self._by_episode.values()):
            if not listed or min(listed) < 0:
                raise ConfigError(f"inference delays must be 0 or more steps, got {list(listed)}")
        self.delays = tuple(delays)
        self._of_episode: Sequence[int] = self.delays
        self._requests = 0

    def start_episode(self, spec: EpisodeSpec) -> None:  # noqa: D102
        self._of_episode = self._by_episode.get(spec.key, self.delays)
        self._requests = 0

    def due_step(self, step: int) -> int | None:  # noqa: D102
        delay = self._of_episode[self._requests % len(self._of_episode)]
        self._requests += 1
        return step + delay
