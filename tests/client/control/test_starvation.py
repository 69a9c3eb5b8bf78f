"""What happens when no action is queued: the simulator stands still, or it is stepped with its hold action."""

from __future__ import annotations

import pytest
from control_run import Run, executed
from stub_environment import StubEnvironment

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.testing import timestep_policy


def test_starvation_waits_by_default(run: Run) -> None:
    run.policy = timestep_policy(rows=4)
    episode = run.episode(inference_delay="6", chunk_size_threshold=0.5)
    assert executed(episode) == list(range(30))
    # A chunk of 4 is asked for with 2 left and would take 6 steps: the queue is empty after every second pair.
    assert episode.starved_steps == len(episode.chunks) - 1
    assert [c.queued for c in episode.chunks] == [0] * len(episode.chunks)


def test_starvation_holds_when_asked_for(run: Run) -> None:
    episode = run.episode(inference_delay="3", chunk_size_threshold=0.0, on_starvation="hold")
    held = [step for step, action in enumerate(episode.actions) if (action == -1).all()]
    assert held == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert episode.starved_steps == 8  # the first step of an episode is nobody's fault
    # What the chunk held for the steps that passed is gone.
    assert executed(episode)[3:10] == list(range(3, 10))
    assert [c.stale for c in episode.chunks] == [3, 3, 3]


def test_realtime_robot_holds_until_the_answer_comes(run: Run) -> None:
    run.polls = 4
    episode = run.episode(clock="realtime", chunk_size_threshold=0.0, on_starvation="hold")
    held = [step for step, action in enumerate(episode.actions) if (action == -1).all()]
    assert held[:5] == [0, 1, 2, 3, 10]
    assert episode.starved_steps == len(held) - 1


def test_robot_that_nobody_can_hold_still_is_refused_at_the_start(run: Run) -> None:
    """Not at its first stall, which may come after hours: this run would never have one."""
    run.environments = [StubEnvironment(holds=False)]
    with pytest.raises(ConfigError, match="holds still"):
        run(on_starvation="hold")
    assert run.environments[0].actions == [[]]


def test_robot_that_nobody_can_hold_still_may_wait(run: Run) -> None:
    run.environments = [StubEnvironment(holds=False)]
    assert run.episode(inference_delay="6", chunk_size_threshold=0.0).length == 30
