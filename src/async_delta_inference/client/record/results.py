"""What a run found out: plain values, one record an episode and one a chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.episode import EpisodeSpec

__all__ = ["ChunkRecord", "EpisodeFigures", "EpisodeResult", "EvaluationResult", "GivenUp"]


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """One chunk that took effect.

    Args:
        requested_step: Step of the episode before which its observation was taken.
        merged_step: Step before which it took effect; the difference is its delay in steps.
        length: Number of its actions.
        stale: Number of its actions that were dropped since their steps had passed.
        aggregated: Number of its actions that met a queued one.
        queued: Actions that were still queued when it took effect: more than 0 is what asynchronous means.
        latency_s: Seconds from the capture of its observation to its arrival at the client.
    """

    requested_step: int
    merged_step: int
    length: int
    stale: int
    aggregated: int
    queued: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class EpisodeFigures:
    """What delay did to an episode; None: it has no such figure. `figures.py` defines each.

    Args:
        steps_to_completion: Control steps of a success.
        reaction_latency_steps: Steps from an observation to the first action that knows of it, the mean over chunks.
        max_reaction_latency_steps: The longest of them.
        action_jerk: Of the executed actions, in the environment's units per second cubed.
        state_jerk: The same of the state.
        switch_jump: Distance of the two actions where a chunk takes over from another, the mean over switches.
        stale_share: Share of the actions sent that came too late.
        starved_share: Share of the steps after the first at whose beginning nothing was queued.
    """

    steps_to_completion: int | None
    reaction_latency_steps: float | None
    max_reaction_latency_steps: float | None
    action_jerk: float | None
    state_jerk: float | None
    switch_jump: float | None
    stale_share: float | None
    starved_share: float | None


@dataclass(slots=True)
class EpisodeResult:
    """One episode.

    Args:
        task_group: Suite or family.
        task_id: Index within it.
        episode: Index within the task.
        seed: What the environment was reset with, or None.
        init_state_id: Recorded initial state, or None.
        success: Whether any step counted as solved; None where the environment never said.
        actions: float32 (T, A), as executed.
        rewards: float64 (T,).
        states: float32 (T, S), before each action.
        chunks: Those that took effect, in order.
        starved_steps: Steps at whose beginning no action was queued.
        late_chunks: Answers for an episode that had ended, dropped.
        open_delay_steps: Delay in steps of a request that was still open when the episode ended: exact in the simulated
            clock, at least in the realtime clock; None where there was none.
        stepping_s: Wall time from the end of the reset to the end of the last step.
        reset_s: Wall time of the reset.
        queue_sizes: int32 (T,), queued actions at the beginning of each step.
        figures: What delay did to it.
        failures: Why earlier attempts at it failed.
    """

    task_group: str
    task_id: int
    episode: int
    seed: int | None
    init_state_id: int | None
    success: bool | None = None
    actions: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    rewards: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    states: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    chunks: list[ChunkRecord] = field(default_factory=list)
    starved_steps: int = 0
    late_chunks: int = 0
    open_delay_steps: int | None = None
    stepping_s: float = 0.0
    reset_s: float = 0.0
    queue_sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    figures: EpisodeFigures | None = None
    failures: tuple[str, ...] = ()

    @property
    def spec(self) -> EpisodeSpec:
        """What it depended on."""
        return EpisodeSpec(self.task_group, self.task_id, self.episode, self.seed, self.init_state_id)

    def hear_success(self, success: bool | None) -> None:
        """What a step said of it; None: nothing."""
        if success is not None:
            self.success = bool(self.success) or success

    @property
    def length(self) -> int:
        """Steps taken."""
        return len(self.rewards)

    @property
    def sum_reward(self) -> float:
        """Sum over the steps."""
        return float(np.sum(self.rewards)) if self.length else 0.0

    @property
    def max_reward(self) -> float:
        """Largest reward of a step."""
        return float(np.max(self.rewards)) if self.length else float("nan")

    @property
    def asynchronous_chunks(self) -> int:
        """Chunks that took effect while actions were still queued."""
        return sum(chunk.queued > 0 for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """An episode that has no result, since its simulator failed in every attempt: nothing is known of the policy.

    Args:
        spec: The episode.
        failures: Why each attempt failed.
    """

    spec: EpisodeSpec
    failures: tuple[str, ...]


@dataclass(slots=True)
class EvaluationResult:
    """A whole run.

    Args:
        episodes: In the order of the tasks and their episodes.
        fps: Control steps per second.
        eval_s: Wall time of the run.
        policy: What was evaluated, as the server says of itself.
        given_up: Episodes that have no result.
        inference_delay_steps: In the simulated clock, the delays used; empty in the realtime clock.
        spoken: How observations travelled, in words, where the transport has a choice: the dialect, and how frames were
            encoded where that changed them.
        repeatable: Whether the same seed and actions give the same; None where nobody tried.
    """

    episodes: list[EpisodeResult] = field(default_factory=list)
    fps: float = 0.0
    eval_s: float = 0.0
    policy: str = ""
    inference_delay_steps: tuple[int, ...] = ()
    given_up: list[GivenUp] = field(default_factory=list)
    spoken: str = ""
    repeatable: bool | None = None

    @property
    def success_rate(self) -> float:
        """Fraction that succeeded of the episodes of which it is known; NaN where that is none."""
        known = [episode.success for episode in self.episodes if episode.success is not None]
        return float(np.mean(known)) if known else float("nan")

    def by_task(self) -> dict[tuple[str, int], list[EpisodeResult]]:
        """Episodes by (task_group, task_id), in the order the tasks were run."""
        tasks: dict[tuple[str, int], list[EpisodeResult]] = {}
        for episode in self.episodes:
            tasks.setdefault((episode.task_group, episode.task_id), []).append(episode)
        return tasks

    def latencies_s(self) -> NDArray[np.float64]:
        """The latency of every chunk that took effect, in order."""
        return np.array([chunk.latency_s for episode in self.episodes for chunk in episode.chunks])
