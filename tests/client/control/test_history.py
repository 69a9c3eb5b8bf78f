"""What a policy that looks at several observations is given, and which frames are rendered for it."""

from __future__ import annotations

import pytest
from control_run import Run

from async_delta_inference.transport import FunctionPolicy, PolicyNeeds, SessionSpec
from async_delta_inference.transport.testing import timestep_policy

STEPS = 3


class Looking(FunctionPolicy):
    """Looks at three observations."""

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        return PolicyNeeds("looks at three", n_obs_steps=STEPS)


def looking(rows: int) -> Looking:
    answer = timestep_policy(rows)
    return Looking(lambda observation: answer(observation))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "flags",
    [
        {"chunk_size_threshold": 0.0},
        {"chunk_size_threshold": 0.5, "inference_delay": "3"},
        {"chunk_size_threshold": 0.0, "inference_delay": "3", "on_starvation": "skip"},
        {"chunk_size_threshold": 0.3, "inference_delay": "5", "on_starvation": "hold"},
        {"chunk_size_threshold": 0.9, "clock": "realtime", "aggregate_fn_name": "latest_only"},
    ],
)
def test_history_is_what_was_seen_at_the_steps_before(run: Run, flags: dict) -> None:
    run.policy = looking(10)
    run.polls = 1
    run.client(n_episodes=2, **flags).run()
    assert len(run.asked) >= 6
    for observation in run.transport.sent:
        step, episode = observation.state
        for behind, past in enumerate(reversed(observation.history), 1):
            expected = max(0, step - behind)
            assert past.state.tolist() == [expected, episode]
            assert (past.images["camera"] == expected).all()


@pytest.mark.parametrize(
    "flags", [{"chunk_size_threshold": 0.0}, {"chunk_size_threshold": 0.5, "inference_delay": "2"}]
)
def test_only_frames_that_are_sent_are_rendered(run: Run, flags: dict) -> None:
    run.policy = looking(10)
    run.episode(**flags)
    rendered = [step for step, render in enumerate(run.environments[0].rendered[0][:-1]) if render]
    wanted = sorted({max(0, step - behind) for step in run.asked for behind in range(STEPS)})
    assert [step for step in rendered if step < 28] == wanted  # Nobody asks before step 30.


def test_where_chunks_end_early_the_history_is_waited_for(run: Run) -> None:
    """The second chunk is shorter than anybody could know: until three frames are there, the environment holds."""
    answers = {0: 10, 10: 4}
    run.policy = Looking(lambda observation: timestep_policy(answers.get(observation.timestep, 10))(observation))  # type: ignore[arg-type, return-value]
    episode = run.episode(chunk_size_threshold=0.0, inference_delay="3", on_starvation="skip")
    assert run.asked[:3] == [0, 10, 16]
    assert (episode.actions[14:16] == -1).all()
