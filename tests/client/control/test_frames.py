"""Which frames are rendered: those that will be sent, and no others."""

from __future__ import annotations

import pytest
from control_run import Run, executed

from async_delta_inference.transport.testing import timestep_policy


@pytest.mark.parametrize(
    ("flags", "in_vain"),
    [
        ({"chunk_size_threshold": 0.0}, []),
        ({"chunk_size_threshold": 0.5, "inference_delay": "3"}, []),
        # Before the first chunk nobody knows how long a chunk is: the frame at its arrival might be needed.
        ({"chunk_size_threshold": 0.0, "inference_delay": "3", "on_starvation": "skip"}, [3]),
        ({"chunk_size_threshold": 0.0, "inference_delay": "3", "on_starvation": "hold"}, [3]),
    ],
)
def test_only_frames_that_are_sent_are_rendered(run: Run, flags: dict, in_vain: list[int]) -> None:
    run.episode(**flags)
    rendered = [step for step, render in enumerate(run.environments[0].rendered[0][:-1]) if render]
    sent = [int(observation.state[0]) for observation in run.transport.sent]
    assert rendered == sorted(sent + in_vain)


def test_simulator_that_stands_still_renders_nothing_for_it(run: Run) -> None:
    """Chunks of 4 that take 6 steps: while the answer is awaited nothing can be sent."""
    run.policy = timestep_policy(rows=4)
    episode = run.episode(inference_delay="6", chunk_size_threshold=0.5)
    assert episode.starved_steps > 5
    rendered = [step for step, render in enumerate(run.environments[0].rendered[0][:-1]) if render]
    assert rendered == run.asked


@pytest.mark.parametrize("polls", [0, 1, 3, 7])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_realtime_renders_what_it_sends(run: Run, polls: int, threshold: float) -> None:
    """The stub refuses to give a frame that was not rendered."""
    run.polls = polls
    episode = run.episode(clock="realtime", chunk_size_threshold=threshold, aggregate_fn_name="latest_only")
    assert executed(episode) == list(range(30))


def test_every_frame_is_rendered_when_asked_for(run: Run) -> None:
    run(render="always", n_episodes=2)
    assert all(all(rendered) for rendered in run.environments[0].rendered)
