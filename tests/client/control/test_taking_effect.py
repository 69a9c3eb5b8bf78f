"""When a chunk that was asked for takes effect: prescribed delays, recorded ones, and those of the machine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from control_run import Run, executed
from stub_environment import StubEnvironment

from async_delta_inference.client import EvaluationResult, RunObserver
from async_delta_inference.transport import Observation
from async_delta_inference.transport.testing import timestep_policy


def test_delay_of_nothing_is_synchronous(run: Run) -> None:
    episode = run.episode(chunk_size_threshold=0.0)
    assert [(c.requested_step, c.merged_step, c.queued) for c in episode.chunks] == [
        (0, 0, 0),
        (10, 10, 0),
        (20, 20, 0),
    ]
    assert episode.starved_steps == 0


@pytest.mark.parametrize("delay", [1, 2, 4, 5])
def test_chunk_takes_effect_after_its_delay_and_never_earlier(run: Run, delay: int) -> None:
    episode = run.episode(inference_delay=str(delay), chunk_size_threshold=0.5, aggregate_fn_name="latest_only")
    first, *others = episode.chunks
    assert (first.requested_step, first.merged_step) == (0, 0)  # nothing to do but wait
    assert others
    assert all(c.merged_step - c.requested_step == delay for c in others)
    assert all(c.queued == 5 - delay for c in others)
    assert all((c.length, c.stale, c.aggregated) == (10, delay, 5 - delay) for c in others)
    # Which chunk an action came from: the old one until the new one takes effect.
    merged_at = {c.merged_step: c.requested_step for c in episode.chunks}
    source, expected = 0, []
    for step in range(30):
        source = merged_at.get(step, source)
        expected.append(source)
    assert episode.actions[:, 1].astype(int).tolist() == expected


def test_overlapping_actions_are_aggregated(run: Run) -> None:
    episode = run.episode(inference_delay="0", chunk_size_threshold=0.5, aggregate_fn_name="average")
    # Chunks at 0, 5, 10, ...: actions 5 to 9 were in the first and in the second.
    assert episode.actions[5:10, 1].tolist() == [2.5] * 5
    assert [c.aggregated for c in episode.chunks] == [0, 5, 5, 5, 5, 5]


def test_what_is_left_of_an_episode_is_not_executed_in_the_next(run: Run) -> None:
    run.environments = [StubEnvironment(max_episode_steps=7)]
    result = run(n_episodes=3, chunk_size_threshold=0.0)
    assert run.asked == [0, 7, 14]
    assert [e.actions[:, 1].tolist() for e in result.episodes] == [[0.0] * 7, [7.0] * 7, [14.0] * 7]


def test_unlike_upstream_a_late_chunk_of_an_ended_episode_is_dropped(run: Run) -> None:
    """The next episode must not execute what was computed for the last one."""
    run.environments = [StubEnvironment(max_episode_steps=7)]
    result = run(n_episodes=3, inference_delay="4", chunk_size_threshold=0.5)
    assert [e.late_chunks for e in result.episodes] == [0, 1, 1]
    assert [executed(e) for e in result.episodes] == [list(range(0, 7)), list(range(7, 14)), list(range(14, 21))]
    assert [e.actions[:, 1].tolist() for e in result.episodes] == [[0.0] * 7, [7.0] * 7, [14.0] * 7]


def test_simulated_clock_does_not_depend_on_the_servers_speed(run: Run) -> None:
    def actions(polls: int) -> np.ndarray:
        run.environments, run.polls = [StubEnvironment()], polls
        return run.episode(inference_delay="3").actions

    np.testing.assert_array_equal(actions(polls=0), actions(polls=100))


class StepsTaken(RunObserver):
    """Counts the steps of a run."""

    def __init__(self) -> None:
        self.count = 0

    def stepped(self, environment: Any, outcome: Any) -> None:
        self.count += 1


def test_the_simulator_goes_on_while_a_chunk_is_computed(run: Run) -> None:
    """No look for an answer before it is due: a client that waits at once would look while it should step."""
    delay, steps = 3, StepsTaken()
    run.observers = [steps]
    client = run.client(inference_delay=str(delay))
    looks: list[tuple[int, int]] = []
    receive = run.transport.receive_actions

    def watched(timeout_s: float) -> Any:
        looks.append((run.asked[-1], steps.count))
        return receive(timeout_s)

    run.transport.receive_actions = watched  # type: ignore[method-assign]
    (episode,) = client.run().episodes
    assert len(episode.chunks) > 3
    assert [(asked, stepped - asked) for asked, stepped in looks] == [
        (0, 0),
        *((chunk.requested_step, delay) for chunk in episode.chunks[1:]),
    ]


@pytest.mark.parametrize("polls", [0, 1, 3])
def test_realtime_takes_what_has_arrived(run: Run, polls: int) -> None:
    """It looks once after it has asked and once before every step, and merges at the look that finds something."""
    run.polls = polls
    episode = run.episode(clock="realtime", chunk_size_threshold=0.9, aggregate_fn_name="latest_only")
    first, *others = episode.chunks
    assert first.merged_step == 0
    assert {chunk.merged_step - chunk.requested_step for chunk in others} == {polls}


# Delays that a run recorded.


def merges(result: EvaluationResult) -> list[list[tuple[int, int]]]:
    """Per episode, before which steps its chunks were asked for and took effect."""
    return [[(c.requested_step, c.merged_step) for c in episode.chunks] for episode in result.episodes]


@pytest.mark.parametrize(
    "flags",
    [
        {"inference_delay": "2"},
        {"inference_delay": "2", "on_starvation": "skip"},
        {"inference_delay": "4", "on_starvation": "hold"},
        {"inference_delay": "4"},
        {"clock": "realtime"},
        {"clock": "realtime", "on_starvation": "skip"},
    ],
)
def test_recorded_delays_replay_their_run(run: Run, flags: dict) -> None:
    """Over several episodes, the last request of each still open at its end: none may shift those that follow."""

    def polls(observation: Observation) -> int:
        return observation.timestep * 7 % 6

    run.polls = polls
    run.environments = [StubEnvironment(max_episode_steps=17)]
    client = run.client(n_episodes=4, **flags)
    first = client.run()
    run.environments = [StubEnvironment(max_episode_steps=17)]
    flags = {name: flag for name, flag in flags.items() if name != "inference_delay"} | {"clock": "simulated"}
    again = run(n_episodes=4, inference_delay_trace=client.output_dir / "inference_delays.json", **flags)
    assert any(episode.late_chunks for episode in first.episodes)
    assert merges(again) == merges(first)
    for one, other in zip(first.episodes, again.episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


@pytest.mark.parametrize(
    ("flags", "open_delay_steps"),
    [
        # Asked before step 15, due before step 19; in the realtime clock nobody knows, but it reached the end.
        ({"inference_delay": "4"}, 4),
        ({"inference_delay": "2"}, 2),
        ({"inference_delay": "1"}, None),
        ({"clock": "realtime"}, 17 - 15),
    ],
)
def test_delay_of_a_request_that_is_open_at_the_end(run: Run, flags: dict, open_delay_steps: int | None) -> None:
    run.environments = [StubEnvironment(max_episode_steps=17)]
    run.polls = lambda observation: 0 if observation.timestep < 15 else 1000
    episode = run.episode(**flags, chunk_size_threshold=0.5)
    assert run.asked[-1] == 15
    assert episode.open_delay_steps == open_delay_steps


def test_the_server_is_told_the_delay(run: Run) -> None:
    """The one that will be; in the realtime clock the longest so far, as lerobot-rollout has it."""
    run.episode(inference_delay="3")
    assert {observation.inference_delay for observation in run.transport.sent} == {3}
    episode = run.episode(clock="realtime")
    told = [observation.inference_delay for observation in run.transport.sent]
    latencies_s = [chunk.latency_s for chunk in episode.chunks]
    longest_s = [max(latencies_s[:n], default=0.0) for n in range(len(told))]
    assert told == [math.ceil(longest / (1 / 200.0)) for longest in longest_s]


def test_delay_in_seconds_is_rounded_up_at_the_control_rate(run: Run) -> None:
    assert run(inference_delay_s=0.011).inference_delay_steps == (3,)  # 200 Hz


def test_delay_in_seconds_counts_in_steps_of_the_given_rate(run: Run) -> None:
    assert run(inference_delay_s=0.011, fps=1000.0).inference_delay_steps == (11,)


def test_chunks_of_changing_length_never_stall(run: Run) -> None:
    def policy(observation: Observation) -> np.ndarray:
        actions = timestep_policy(rows=1 + observation.timestep * 7 % 10)(observation)
        assert actions is not None
        return actions

    run.policy = policy
    for flags in (
        {},
        {"inference_delay": "2"},
        {"inference_delay": "4", "on_starvation": "skip"},
        {"clock": "realtime"},
    ):
        run.environments = [StubEnvironment()]
        assert run.episode(**flags).length == 30
