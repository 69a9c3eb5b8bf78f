"""What delay does to an episode, in numbers: each figure a pure function, defined in its docstring.

A figure that an episode does not have (a jerk of three steps, a latency without a chunk) is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.record.results import ChunkRecord, EpisodeFigures, EpisodeResult
from async_delta_inference.client.record.statistics import known_successes, success_interval

__all__ = [
    "RunFigures",
    "episode_figures",
    "held_steps",
    "jerk",
    "reaction_latencies_steps",
    "run_figures",
    "stale_share",
    "starved_share",
    "steps_to_completion",
    "switch_jumps",
]


def episode_figures(result: EpisodeResult, fps: float) -> EpisodeFigures:
    """All figures of an episode whose arrays are there.

    Args:
        result: Complete.
        fps: Control steps per second of the simulator's time.
    """
    latencies = reaction_latencies_steps(result.chunks)
    jumps = switch_jumps(result)
    return EpisodeFigures(
        steps_to_completion=steps_to_completion(result),
        reaction_latency_steps=_mean(latencies),
        max_reaction_latency_steps=float(max(latencies)) if latencies else None,
        action_jerk=jerk(result.actions, fps),
        state_jerk=jerk(result.states, fps),
        switch_jump=_mean(jumps),
        stale_share=stale_share(result.chunks),
        starved_share=starved_share(result),
    )


def steps_to_completion(result: EpisodeResult) -> int | None:
    """Control steps from the reset to the end of an episode that succeeded; None of any other.

    As the delay papers print it (RTC, arXiv 2506.07339, and VLASH, arXiv 2512.01031, as time to complete a task): a
    policy may be as successful with a delay, and slower.
    """
    return result.length if result.success else None


def reaction_latencies_steps(chunks: Sequence[ChunkRecord]) -> list[int]:
    """Steps from an observation to the first executed action that knows of it, one number a chunk.

    It is the time from request to effect, counted in steps, of the chunks of which an action was executed. What happens
    just after an observation is seen by the next one only: the longest wait for an answer to an event is this and the
    steps between two requests. VLASH, arXiv 2512.01031, calls that the reaction latency of a policy, in seconds.
    """
    return [chunk.merged_step - chunk.requested_step for chunk in chunks if chunk.stale < chunk.length]


def jerk(values: NDArray[np.floating], fps: float) -> float | None:
    """Root mean square of the third difference of a trajectory, per second cubed, in the environment's units.

    With D = x[t+3] - 3 x[t+2] + 3 x[t+1] - x[t], it is sqrt(mean over t of |D|^2) * fps^3, |.| the Euclidean norm over
    the dimensions. Its square times the duration is the cost that minimum-jerk movements minimise (Flash and Hogan,
    The coordination of arm movements, Journal of Neuroscience 5, 1985). Of actions that are displacements it is one
    derivative further. Dimensions of different units (metres, radians, a gripper) are added as they are: compare it
    between runs of the same environment only.

    Args:
        values: (T, D), one row a control step.
        fps: Steps per second.
    """
    if len(values) < 4 or not values.shape[1]:
        return None
    third = np.diff(np.asarray(values, np.float64), n=3, axis=0)
    return float(math.sqrt(np.mean(np.sum(third**2, axis=1))) * fps**3)


def switch_jumps(result: EpisodeResult) -> list[float]:
    """How far the commanded action jumps where a chunk takes over from the one before it, one number a switch.

    The Euclidean norm of a[t] - a[t-1], t the first step that executes the new chunk, in the environment's units. A
    switch where the robot held before (no chunk's action was executed at t-1) is none. RTC, arXiv 2506.07339, is made
    to reduce it; compare it with and without overlap of chunks, since a movement has such differences at every step.
    """
    held = held_steps(result)
    switches = sorted({chunk.merged_step for chunk in result.chunks if chunk.stale < chunk.length})
    actions = np.asarray(result.actions, np.float64)
    return [
        float(np.linalg.norm(actions[step] - actions[step - 1]))
        for step in switches
        if 0 < step < result.length and not held[step - 1]
    ]


def held_steps(result: EpisodeResult) -> NDArray[np.bool_]:
    """Bool (T,): the steps that were taken with the hold action, since no chunk had one.

    Nothing was queued at its beginning, and no chunk that could be executed took effect before it, as one does where
    the simulator waits.
    """
    held: NDArray[np.bool_] = np.asarray(result.queue_sizes) == 0
    for chunk in result.chunks:
        if chunk.stale < chunk.length and chunk.merged_step < len(held):
            held[chunk.merged_step] = False
    return held


def stale_share(chunks: Sequence[ChunkRecord]) -> float | None:
    """Share of the actions that the server sent which came too late and were dropped, of all chunks that took effect.

    RobotClient drops the same ones, those whose timestep was executed. It grows with the delay in chunks' lengths,
    d / n of a chunk of n actions that was asked for d steps before.
    """
    sent = sum(chunk.length for chunk in chunks)
    return sum(chunk.stale for chunk in chunks) / sent if sent else None


def starved_share(result: EpisodeResult) -> float | None:
    """Share of an episode's steps after its first at whose beginning no action was queued.

    What lerobot calls an empty queue. The first step is left out: nothing can be queued by then.
    """
    return result.starved_steps / (result.length - 1) if result.length > 1 else None


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Several episodes. Each mean is over the episodes that have the figure, and None where none has it.

    Args:
        episodes: How many.
        successes: Of those of which it is known.
        known: Of how many it is known.
        success_rate: Successes of those.
        success_interval: 95 % Wilson score interval (Wilson, JASA 22, 1927), both ends in [0, 1].
        means: By the names of `EpisodeFigures`.
    """

    episodes: int
    successes: int
    known: int
    success_rate: float | None
    success_interval: tuple[float, float] | None
    means: dict[str, float | None]


def run_figures(episodes: Sequence[EpisodeResult]) -> RunFigures:
    """The figures of a run, or of a part of it."""
    known = known_successes(episodes)
    of_episodes = [episode.figures for episode in episodes if episode.figures is not None]
    means = {
        field.name: _mean([value for figures in of_episodes if (value := getattr(figures, field.name)) is not None])
        for field in fields(EpisodeFigures)
    }
    return RunFigures(
        episodes=len(episodes),
        successes=sum(known),
        known=len(known),
        success_rate=sum(known) / len(known) if known else None,
        success_interval=success_interval(known) if known else None,
        means=means,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
