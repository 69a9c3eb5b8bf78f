"""What happens when no action is queued: wait, hold or skip."""

from __future__ import annotations

import numpy as np
import pytest
from control_run import Run, executed
from stub_environment import StubEnvironment

from async_delta_inference.client import EpisodeResult
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.testing import timestep_policy


def held(episode: EpisodeResult) -> list[int]:
    """The steps that were taken with the hold action."""
    return [step for step, action in enumerate(episode.actions) if (action == -1).all()]


def test_starvation_waits_by_default(run: Run) -> None:
    run.policy = timestep_policy(rows=4)
    episode = run.episode(inference_delay="6", chunk_size_threshold=0.5)
    assert executed(episode) == list(range(30))
    # A chunk of 4 is asked for with 2 left and would take 6 steps: the queue is empty after every second pair.
    assert episode.starved_steps == len(episode.chunks) - 1
    assert [c.queued for c in episode.chunks] == [0] * len(episode.chunks)


def test_skip_drops_the_actions_of_the_steps_that_passed(run: Run) -> None:
    episode = run.episode(inference_delay="3", chunk_size_threshold=0.0, on_starvation="skip")
    assert held(episode) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert episode.starved_steps == 8  # the first step of an episode is nobody's fault
    # What the chunk held for the steps that passed is gone.
    assert executed(episode)[3:10] == list(range(3, 10))
    assert [c.stale for c in episode.chunks] == [3, 3, 3]


def test_hold_executes_a_chunk_from_its_start(run: Run) -> None:
    episode = run.episode(inference_delay="3", chunk_size_threshold=0.0, on_starvation="hold")
    assert held(episode) == [0, 1, 2, 13, 14, 15, 26, 27, 28]
    assert [timestep for timestep in executed(episode) if timestep >= 0] == list(range(21))
    assert [(c.requested_step, c.merged_step, c.stale) for c in episode.chunks] == [(0, 3, 0), (13, 16, 0), (26, 29, 0)]
    assert run.asked == [0, 10, 20]  # Of the actions: a robot that holds executes none.


def test_hold_drops_what_was_executed_meanwhile(run: Run) -> None:
    """Asked for with two actions queued, there after four steps: two of its actions have passed, not four."""
    run.policy = timestep_policy(rows=4)
    episode = run.episode(inference_delay="4", chunk_size_threshold=0.5, on_starvation="hold")
    first, *others = episode.chunks
    assert (first.stale, {chunk.stale for chunk in others}) == (0, {2})
    assert [timestep for timestep in executed(episode) if timestep >= 0] == list(range(30 - len(held(episode))))


@pytest.mark.parametrize("on_starvation", ["hold", "skip"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_realtime_robot_holds_until_the_answer_comes(run: Run, on_starvation: str, threshold: float) -> None:
    run.polls = 4
    flags = {"clock": "realtime", "on_starvation": on_starvation, "aggregate_fn_name": "latest_only"}
    episode = run.episode(chunk_size_threshold=threshold, **flags)
    assert held(episode)[:4] == [0, 1, 2, 3]
    assert episode.starved_steps == len(held(episode)) - 1
    assert executed(episode)[4] == {"hold": 0, "skip": 4}[on_starvation]


@pytest.mark.parametrize("flags", [{}, {"clock": "realtime"}, {"clock": "realtime", "one_request_in_flight": False}])
def test_no_timestep_is_asked_for_twice(run: Run, flags: dict) -> None:
    """A server answers each once; and one that is open when its episode ends is none of the next episode's."""
    run.environments, run.polls = [StubEnvironment(max_episode_steps=7)], 4
    if not flags:
        flags = {"inference_delay": "4"}
    result = run(n_episodes=4, chunk_size_threshold=1.0, on_starvation="hold", **flags)
    assert len(set(run.asked)) == len(run.asked)
    for episode in result.episodes:
        acted = [timestep for timestep in executed(episode) if timestep >= 0]
        assert acted == list(range(acted[0], acted[0] + len(acted)))
        assert acted[0] in run.asked


def test_without_starvation_all_three_are_the_same(run: Run) -> None:
    episodes = []
    for on_starvation in ("wait", "hold", "skip"):
        run.environments = [StubEnvironment()]
        episodes.append(run.episode(chunk_size_threshold=0.5, on_starvation=on_starvation))
    for episode in episodes[1:]:
        np.testing.assert_array_equal(episode.actions, episodes[0].actions)
        assert [(c.requested_step, c.merged_step) for c in episode.chunks] == [
            (c.requested_step, c.merged_step) for c in episodes[0].chunks
        ]


@pytest.mark.parametrize("on_starvation", ["hold", "skip"])
def test_robot_that_nobody_can_hold_still_is_refused_at_the_start(run: Run, on_starvation: str) -> None:
    """Not at its first stall, which may come after hours: this run would never have one."""
    run.environments = [StubEnvironment(holds=False)]
    with pytest.raises(ConfigError, match="holds still"):
        run(on_starvation=on_starvation)
    assert run.environments[0].actions == [[]]


def test_robot_that_nobody_can_hold_still_may_wait(run: Run) -> None:
    run.environments = [StubEnvironment(holds=False)]
    assert run.episode(inference_delay="6", chunk_size_threshold=0.0).length == 30
