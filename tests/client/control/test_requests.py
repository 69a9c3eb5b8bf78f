"""When the control loop asks for a chunk, and what its observations say of themselves.

The tests named ``test_unlike_upstream_...``, here and beside, are about defects of RobotClient or PolicyServer that are
not inherited; each fails with upstream's behaviour.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from control_run import Run, executed
from stub_environment import StubEnvironment

from async_delta_inference.client import EpisodeSpec
from async_delta_inference.transport import Observation
from async_delta_inference.transport.testing import timestep_policy

# Labels.


@pytest.mark.parametrize("flags", [{}, {"chunk_size_threshold": 0.0}, {"clock": "realtime"}, {"inference_delay": "3"}])
def test_unlike_upstream_no_action_of_a_chunk_is_lost(run: Run, flags: dict) -> None:
    episode = run.episode(**flags, aggregate_fn_name="latest_only")
    assert executed(episode) == list(range(30))


def test_observation_carries_the_timestep_of_the_action_it_is_for(run: Run) -> None:
    run(chunk_size_threshold=0.0)
    assert run.asked == [0, 10, 20]
    assert [observation.state[0] for observation in run.transport.sent] == [0, 10, 20]


def numbers(*episodes: tuple[int, int]) -> list[int]:
    """What a server is told in three observations of each, given as task and index."""
    return [EpisodeSpec("stub", task, index, None).number for task, index in episodes for _ in range(3)]


def test_unlike_upstream_timesteps_do_not_restart_with_an_episode(run: Run) -> None:
    run(n_episodes=3, chunk_size_threshold=0.0)
    assert run.asked == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert [observation.episode for observation in run.transport.sent] == numbers((0, 0), (0, 1), (0, 2))


def test_episodes_of_further_tasks_go_on_counting(run: Run) -> None:
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=1)]
    result = run(n_episodes=2, chunk_size_threshold=0.0)
    assert [o.episode for o in run.transport.sent] == numbers((0, 0), (0, 1), (1, 0), (1, 1))
    assert [(e.task_id, e.episode, e.seed) for e in result.episodes] == [
        (0, 0, 1000),
        (0, 1, 1001),
        (1, 0, 1000),
        (1, 1, 1001),
    ]
    assert all(environment.closed for environment in run.environments)


def test_observation_says_when_it_was_taken(run: Run) -> None:
    before_s = time.time()
    run()
    taken_s = [observation.timestamp_s for observation in run.transport.sent]
    assert taken_s == sorted(taken_s)
    assert before_s <= taken_s[0]
    assert taken_s[-1] <= time.time()


def test_task_is_the_environments_unless_given(run: Run) -> None:
    run()
    assert {observation.task for observation in run.transport.sent} == {"do nothing"}


def test_task_of_the_configuration_wins(run: Run) -> None:
    run(task="do something")
    assert {observation.task for observation in run.transport.sent} == {"do something"}


# When to ask.


@pytest.mark.parametrize(
    ("threshold", "asked_at"), [(0.0, [0, 10, 20]), (0.5, [0, 5, 10, 15, 20, 25]), (0.9, list(range(30)))]
)
def test_threshold_decides_when_to_ask(run: Run, threshold: float, asked_at: list[int]) -> None:
    run(chunk_size_threshold=threshold)
    assert run.asked == asked_at


def test_unlike_upstream_one_request_is_in_flight(run: Run) -> None:
    run.polls = 4
    episode = run.episode(clock="realtime", chunk_size_threshold=0.5)
    answers = [chunk.requested_step for chunk in episode.chunks]
    assert run.asked[: len(answers)] == answers
    assert len(run.asked) <= len(answers) + 1
    assert executed(episode) == list(range(30))


def test_requests_every_step_as_upstream_when_asked_for(run: Run) -> None:
    run.polls = 2
    episode = run.episode(
        clock="realtime", chunk_size_threshold=0.5, one_request_in_flight=False, aggregate_fn_name="latest_only"
    )
    assert len(run.asked) > len(set(run.asked) & {0, 5, 10, 15, 20, 25})
    assert executed(episode) == list(range(30))


def test_answer_to_something_old_leaves_the_newest_request_open(run: Run) -> None:
    """Observations 4 and 5 are sent before the answer to 4 is there: it is not that to 5, which stays open."""
    run.environments = [StubEnvironment(max_episode_steps=8)]
    looks_in_vain = {0: 0, 4: 2}
    run.polls = lambda observation: looks_in_vain.get(observation.timestep, 100)
    episode = run.episode(clock="realtime", chunk_size_threshold=0.6, one_request_in_flight=False)
    assert run.asked == [0, 4, 5]
    assert [(chunk.requested_step, chunk.merged_step) for chunk in episode.chunks] == [(0, 0), (4, 5)]
    assert episode.open_delay_steps == 8 - 5


def test_unlike_upstream_every_observation_must_be_answered(run: Run) -> None:
    run(chunk_size_threshold=0.5)
    assert all(observation.must_go for observation in run.transport.sent)


def test_must_go_with_an_empty_queue_as_upstream_when_asked_for(run: Run) -> None:
    run(chunk_size_threshold=0.5, must_go="queue_empty", clock="realtime")
    assert [observation.must_go for observation in run.transport.sent] == [True] + [False] * (len(run.asked) - 1)


def test_filtered_observation_is_asked_again_when_the_queue_is_empty(run: Run) -> None:
    """PolicyServer drops what does not have to be answered: the run must go on all the same."""
    answer = timestep_policy(rows=10)

    def filter_like_upstream(observation: Observation) -> np.ndarray | None:
        return answer(observation) if observation.must_go else None

    run.policy = filter_like_upstream
    episode = run.episode(clock="realtime", must_go="queue_empty")
    assert executed(episode) == list(range(30))
    assert episode.asynchronous_chunks == 0
