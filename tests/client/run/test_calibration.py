"""``--inference_delay=auto``: measured once, before the first episode, and then as good as prescribed."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from control_run import Run
from stub_environment import StubEnvironment

from async_delta_inference.errors import TransportTimeout
from async_delta_inference.transport import Observation
from async_delta_inference.transport.testing import timestep_policy

CALIBRATING = 6
"""Observations that are sent before the first episode."""


def slow(run: Run, *seconds: float) -> None:
    """Have the first answers take so long, and the others as long as the last of them."""
    answer, taken = timestep_policy(rows=10), list(seconds)

    def policy(observation: Observation) -> np.ndarray | None:
        time.sleep(taken.pop(0) if len(taken) > 1 else taken[0])
        return answer(observation)

    run.policy = policy


def test_delay_is_calibrated_once_and_recorded(run: Run) -> None:
    slow(run, 0.011)  # 2.2 steps at the stub's 200 Hz
    client = run.client(inference_delay="auto", n_episodes=2)
    result = client.run()
    (delay,) = result.inference_delay_steps
    assert delay >= 3
    delays = {c.merged_step - c.requested_step for e in result.episodes for c in e.chunks[1:]}
    assert delays <= {delay}
    assert run.environments[0].seeds == [1000, 1001]  # calibrating resets nothing
    written = json.loads((client.output_dir / "eval_info.json").read_text())
    assert written["overall"]["async"]["inference_delay_steps"] == [delay]

    run.environments, run.policy = [StubEnvironment()], timestep_policy(rows=10)
    again = run(inference_delay=str(delay), n_episodes=2)
    for one, other in zip(result.episodes, again.episodes, strict=True):
        # Calibrating used up timesteps, which the stub's actions tell.
        np.testing.assert_array_equal(one.actions - CALIBRATING, other.actions)


def test_observations_for_it_are_blank_and_of_an_episode_of_their_own(run: Run) -> None:
    run(inference_delay="auto", n_episodes=2)
    blank, real = run.transport.sent[:CALIBRATING], run.transport.sent[CALIBRATING:]
    assert [observation.timestep for observation in blank] == list(range(CALIBRATING))
    assert all((observation.images["camera"] == 128).all() for observation in blank)
    assert all((observation.state == 0).all() for observation in blank)
    assert {observation.task for observation in blank} == {"do nothing"}
    assert all(observation.must_go for observation in blank)
    # The policy is reset between what it was calibrated with and the first episode.
    assert {o.episode for o in blank}.isdisjoint(o.episode for o in real)
    assert real[0].timestep == CALIBRATING


def test_first_answer_which_warms_the_policy_up_does_not_count(run: Run) -> None:
    """Three of the five that count take 40 ms: a median over all six would be half of that, or less."""
    slow(run, 0.0, 0.0, 0.0, 0.04)
    (delay,) = run(inference_delay="auto").inference_delay_steps
    assert delay >= 8


def test_server_that_does_not_answer_is_an_error(run: Run) -> None:
    run.silent = True
    with pytest.raises(TransportTimeout):
        run(inference_delay="auto", inference_timeout_s=0.05)
    assert run.environments[0].closed
