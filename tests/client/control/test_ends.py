"""How an episode ends, and a run that cannot go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from control_run import Run
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference.client import StepResult
from async_delta_inference.errors import EpisodeError, PolicyError, TransportTimeout
from async_delta_inference.transport import Observation
from async_delta_inference.transport.testing import timestep_policy


def outcome(**changes: Any) -> StepResult:
    return StepResult(**{"reward": 0.0, "terminated": False, "truncated": False, "success": False} | changes)


# Episodes.


def test_success_ends_an_episode(run: Run) -> None:
    run.environments = [StubEnvironment(outcomes={12: SOLVED})]
    episode = run.episode()
    assert (episode.success, episode.length, episode.sum_reward, episode.max_reward) == (True, 12, 1.0, 1.0)


def test_step_limit_ends_an_episode(run: Run) -> None:
    episode = run.episode()
    assert (episode.success, episode.length) == (False, 30)


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_simulator_may_end_an_episode_that_failed(run: Run, how: str) -> None:
    run.environments = [StubEnvironment(outcomes={12: outcome(**{how: True})})]
    episode = run.episode()
    assert (episode.success, episode.length) == (False, 12)


def test_episode_that_was_solved_once_counts_as_solved(run: Run) -> None:
    """As lerobot-eval counts: the simulator goes on, and the steps after it say nothing of the success."""
    run.environments = [StubEnvironment(outcomes={5: outcome(success=True, reward=0.5)})]
    episode = run.episode()
    assert (episode.success, episode.length, episode.sum_reward) == (True, 30, 0.5)


def test_success_does_not_last_into_the_next_episode(run: Run) -> None:
    first = StubEnvironment(outcomes={5: SOLVED})
    run.environments = [first, StubEnvironment(task_id=1)]
    assert [episode.success for episode in run(n_episodes=2).episodes] == [True, True, False, False]


# Runs.


def test_unlike_upstream_no_wait_is_endless(run: Run) -> None:
    run.silent = True
    with pytest.raises(TransportTimeout, match="inference_timeout_s"):
        run(inference_timeout_s=0.05)


def test_unanswered_request_is_noticed_while_actions_are_queued(run: Run) -> None:
    """Nobody waits for it: every look for an answer is a poll."""
    run.environments = [StubEnvironment(max_episode_steps=1000)]
    run.policy = timestep_policy(rows=500)
    run.polls = lambda observation: 0 if observation.timestep == 0 else 10**6
    with pytest.raises(TransportTimeout):
        run(clock="realtime", inference_timeout_s=0.05, chunk_size_threshold=1.0, actions_per_chunk=500)
    assert 0 < len(run.environments[0].actions[0]) < 500


def test_policy_error_ends_the_run_and_keeps_what_was_done(run: Run) -> None:
    answer = timestep_policy(rows=10)

    def fail_in_the_third(observation: Observation) -> np.ndarray | None:
        if observation.episode == run.environments[0].episode(2, None).number:
            raise PolicyError("it broke", observation.timestep)
        return answer(observation)

    run.policy = fail_in_the_third
    client = run.client(n_episodes=3)
    with pytest.raises(PolicyError):
        client.run()
    assert len(client.result.episodes) == 2
    assert (client.output_dir / "eval_info.json").is_file()
    assert run.transport.closed
    assert run.environments[0].closed


def test_simulator_that_fails_before_an_observation_is_sent_gives_the_loan_back(run: Run) -> None:
    class Blind(StubEnvironment):
        def write_observation(self, observation: Observation) -> None:
            raise EpisodeError("the camera broke")

    run.environments = [Blind()]
    client = run.client()
    returned: list[Observation] = []
    return_loan = run.transport.return_loan

    def watched(observation: Observation) -> None:
        returned.append(observation)
        return_loan(observation)

    run.transport.return_loan = watched  # type: ignore[method-assign]
    with pytest.raises(EpisodeError, match="the camera broke"):
        client.run()
    assert len(returned) == 1
    assert run.asked == []
