"""What an `EpisodeResult` says of the episode it is about: against what was done to the environment."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from control_run import Run, executed
from stub_environment import StubEnvironment

from async_delta_inference import stages
from async_delta_inference.client import EpisodeResult, EpisodeSpec, RunObserver, StepResult
from async_delta_inference.transport import Observation


def test_actions_states_and_rewards_are_those_of_the_steps(run: Run) -> None:
    outcomes = {n: StepResult(float(n), False, False, False) for n in range(1, 31)}
    run.environments = [StubEnvironment(outcomes=outcomes)]
    result = run(n_episodes=2)
    for episode, given in zip(result.episodes, run.environments[0].actions, strict=True):
        np.testing.assert_array_equal(episode.actions, given)
        assert episode.actions.dtype == np.float32
        assert episode.states.tolist() == [[step, episode.episode] for step in range(30)]  # before each action
        assert episode.rewards.tolist() == list(range(1, 31))


def test_initial_state_is_the_environments(run: Run) -> None:
    class Recorded(StubEnvironment):
        def episode(self, episode: int, seed: int | None) -> EpisodeSpec:
            return replace(super().episode(episode, seed), init_state_id=41 + episode)

    run.environments = [Recorded(task_id=3)]
    result = run(n_episodes=2, seed=7)
    assert [(e.task_group, e.task_id, e.episode, e.seed, e.init_state_id) for e in result.episodes] == [
        ("stub", 3, 0, 7, 41),
        ("stub", 3, 1, 8, 42),
    ]


def test_queue_is_measured_at_the_beginning_of_each_step(run: Run) -> None:
    synchronous = run.episode(chunk_size_threshold=0.0)
    assert synchronous.queue_sizes.tolist() == [*range(10, 0, -1)] * 3
    run.environments = [StubEnvironment()]
    starving = run.episode(chunk_size_threshold=0.0, inference_delay="3")
    assert starving.queue_sizes.tolist() == [0, *range(9, 0, -1)] * 3


class Slow(StubEnvironment):
    """Takes its time, so that no span can hide in another."""

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        time.sleep(0.05)
        super().reset(spec, render=render)

    def write_observation(self, observation: Observation) -> None:
        time.sleep(0.05)
        super().write_observation(observation)


def test_seconds_of_an_episode_are_those_of_its_reset_and_of_its_steps(run: Run) -> None:
    """Not how long it took: that the two spans cover what they name, and nothing of each other."""
    run.environments = [Slow()]
    began_s = time.perf_counter()
    result = run(n_episodes=2, chunk_size_threshold=0.0)
    ended_s = time.perf_counter()
    (environment,) = run.environments
    nexts_s = [environment.resets_s[1][0], ended_s]
    for episode, (_, reset_s), steps, next_s in zip(
        result.episodes, environment.resets_s, environment.steps_s, nexts_s, strict=True
    ):
        assert episode.reset_s >= 0.05
        assert episode.stepping_s >= steps[-1][1] - steps[0][0] > 0
        assert episode.stepping_s <= next_s - reset_s
    spans_s = [episode.reset_s + episode.stepping_s for episode in result.episodes]
    assert sum(spans_s) <= result.eval_s <= ended_s - began_s


def test_latency_begins_with_the_capture(run: Run) -> None:
    run.environments = [Slow()]
    episode = run.episode(chunk_size_threshold=0.0)
    assert len(episode.chunks) == 3
    assert all(chunk.latency_s >= 0.05 for chunk in episode.chunks)


def test_unlike_upstream_latencies_do_not_follow_the_wall_clock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which upstream subtracts from each other: here it runs backwards by an hour a look."""
    now_s = [1e9]

    def backwards() -> float:
        now_s[0] -= 3600
        return now_s[0]

    monkeypatch.setattr(time, "time", backwards)
    episode = run.episode()
    assert all(0 <= chunk.latency_s < 60 for chunk in episode.chunks)


def test_stages_of_a_chunk_are_marked_on_the_clients_side(run: Run) -> None:
    recorder = stages.start()
    try:
        run(chunk_size_threshold=0.0)
        marks = recorder.take()
    finally:
        stages.stop()
    of_the_loop = (stages.BEGIN, stages.CAPTURE, stages.REPLY, stages.MERGE)
    for timestep in (0, 10, 20):
        chain = sorted((at_ns, stage) for stage, marked, at_ns in marks if marked == timestep and stage in of_the_loop)
        assert sorted(stage for _, stage in chain) == sorted(of_the_loop)
        assert chain[0][1] == stages.BEGIN
        assert chain[-1][1] == stages.MERGE


class Log(RunObserver):
    """What an observer is told, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def run_started(self, environments: Any, n_episodes: int) -> None:
        self.calls.append(("run", len(environments), n_episodes))

    def episode_started(self, environment: Any, episode: int) -> None:
        assert len(environment.seeds) == episode + 1, "told before the reset"
        self.calls.append(("episode", environment.task_id, episode))

    def stepped(self, environment: Any, outcome: StepResult) -> None:
        self.calls.append(outcome.reward)

    def episode_ended(self, environment: Any, result: EpisodeResult) -> None:
        assert result.length == len(result.queue_sizes) == 2
        assert result.stepping_s > 0
        self.calls.append(("ended", environment.task_id, result.episode))

    def run_ended(self, result: Any) -> None:
        assert result.eval_s > 0
        self.calls.append(("over", len(result.episodes)))


def test_observer_is_told_of_everything_in_order(run: Run) -> None:
    outcomes = {n: StepResult(float(n), False, False, False) for n in (1, 2)}
    run.environments = [StubEnvironment(2, outcomes, task_id=4), StubEnvironment(2, outcomes, task_id=5)]
    log = Log()
    run.observers = [log]
    run(n_episodes=2)
    assert log.calls == [
        ("run", 2, 2),
        *[("episode", 4, 0), 1.0, 2.0, ("ended", 4, 0)],
        *[("episode", 4, 1), 1.0, 2.0, ("ended", 4, 1)],
        *[("episode", 5, 0), 1.0, 2.0, ("ended", 5, 0)],
        *[("episode", 5, 1), 1.0, 2.0, ("ended", 5, 1)],
        ("over", 4),
    ]


def test_actions_are_given_on_the_client_device(run: Run) -> None:
    """cpu:0 is a device that every machine has and that is not the default."""
    import torch

    given: list[object] = []

    class OnDevice(StubEnvironment):
        def step(self, action: Any, *, render: bool = True) -> StepResult:
            given.append(action)
            return super().step(np.asarray(action), render=render)

    run.environments = [OnDevice()]
    episode = run.episode(client_device="cpu:0")
    assert len(given) == 30
    assert all(isinstance(action, torch.Tensor) for action in given)
    assert executed(episode) == list(range(30))
