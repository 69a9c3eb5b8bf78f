"""What happens in a run of many simulators, as plain values that can be pickled."""

from __future__ import annotations

from dataclasses import dataclass

from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult, GivenUp

__all__ = [
    "EpisodeEnded",
    "EpisodeFailed",
    "EpisodeGivenUp",
    "EpisodeStarted",
    "Event",
    "RunEnded",
    "RunStarted",
    "ServerStarted",
    "Stepped",
]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The tasks are known.

    Args:
        episodes: All that belong to the evaluation, in order.
        missing: Those of them that are to be run: not those that an earlier run has left.
        n_envs: Simulators at the same time.
    """

    episodes: tuple[EpisodeSpec, ...]
    missing: tuple[EpisodeSpec, ...]
    n_envs: int


@dataclass(frozen=True, slots=True)
class ServerStarted:
    """A server of the run's own is ready.

    Args:
        uri: Where.
        restarts: How many died before it.
    """

    uri: str
    restarts: int


@dataclass(frozen=True, slots=True)
class EpisodeStarted:
    """A simulator was reset.

    Args:
        worker: Which simulator, from 0.
        spec: The episode.
        max_episode_steps: How long it can be.
    """

    worker: int
    spec: EpisodeSpec
    max_episode_steps: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """An episode goes on; a few times a second, not at every step.

    Args:
        worker: Which simulator.
        steps: Taken so far.
    """

    worker: int
    steps: int


@dataclass(frozen=True, slots=True)
class EpisodeEnded:
    """An episode is complete, and on the disk.

    Args:
        worker: Which simulator.
        result: With its arrays.
        unwritten: Files of it that could not be written, and why.
        repeatable: Whether the same seed and actions give the same in that simulator; None where nobody tried.
    """

    worker: int
    result: EpisodeResult
    unwritten: tuple[tuple[str, str], ...] = ()
    repeatable: bool | None = None


@dataclass(frozen=True, slots=True)
class EpisodeFailed:
    """A simulator, or the server, failed in an episode, which is run again.

    Args:
        worker: Which simulator.
        spec: The episode.
        reason: In words.
    """

    worker: int
    spec: EpisodeSpec
    reason: str


@dataclass(frozen=True, slots=True)
class EpisodeGivenUp:
    """Every attempt at an episode failed.

    Args:
        given_up: The episode and why.
    """

    given_up: GivenUp


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Nothing is left to do.

    Args:
        result: Of the whole evaluation, with what an earlier run has left.
    """

    result: EvaluationResult


Event = RunStarted | ServerStarted | EpisodeStarted | Stepped | EpisodeEnded | EpisodeFailed | EpisodeGivenUp | RunEnded
