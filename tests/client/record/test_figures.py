"""Each figure against numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from control_run import Run
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference.client import EpisodeResult
from async_delta_inference.client.record.figures import (
    episode_figures,
    held_steps,
    jerk,
    reaction_latencies_steps,
    run_figures,
    stale_share,
    starved_share,
    steps_to_completion,
    switch_jumps,
)
from async_delta_inference.client.record.results import ChunkRecord


def chunk(requested: int, merged: int, length: int = 10, stale: int = 0) -> ChunkRecord:
    return ChunkRecord(requested, merged, length, stale, aggregated=0, queued=0, latency_s=0.1)


def episode(**fields: object) -> EpisodeResult:
    return EpisodeResult("stub", 0, 0, seed=0, init_state_id=None, **fields)  # type: ignore[arg-type]


def test_jerk_of_a_cubic_is_its_third_derivative() -> None:
    fps = 20.0
    time_s = np.arange(30)[:, None] / fps
    assert jerk(time_s**3, fps) == pytest.approx(6.0)
    assert jerk(np.hstack([time_s**3, -(time_s**3)]), fps) == pytest.approx(6.0 * np.sqrt(2))
    assert jerk(time_s**2, fps) == pytest.approx(0.0, abs=1e-6)


def test_jerk_does_not_lose_what_float32_loses() -> None:
    values = (1000.0 + 0.001 * np.arange(8)[:, None] ** 3).astype(np.float32)
    assert jerk(values, 1.0) == pytest.approx(0.006, rel=0.05)


@pytest.mark.parametrize("values", [np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((10, 0))])
def test_too_short_a_trajectory_has_no_jerk(values: np.ndarray) -> None:
    assert jerk(values, 20.0) is None


def test_reaction_latency_is_of_chunks_that_were_executed() -> None:
    assert reaction_latencies_steps([chunk(0, 3), chunk(5, 9, stale=4), chunk(9, 20, stale=10)]) == [3, 4]


def test_stale_share_counts_actions_not_chunks() -> None:
    assert stale_share([chunk(0, 3, length=10, stale=3), chunk(5, 5, length=2)]) == pytest.approx(3 / 12)
    assert stale_share([]) is None


def test_only_a_success_has_steps_to_completion() -> None:
    rewards = np.zeros(7)
    lengths = [steps_to_completion(episode(success=success, rewards=rewards)) for success in (True, False, None)]
    assert lengths == [7, None, None]


def test_starved_share_leaves_the_first_step_out() -> None:
    assert starved_share(episode(rewards=np.zeros(11), starved_steps=5)) == 0.5
    assert starved_share(episode(rewards=np.zeros(1))) is None


@pytest.mark.parametrize("on_starvation", ["hold", "skip"])
def test_a_switch_from_holding_is_no_jump_between_chunks(run: Run, on_starvation: str) -> None:
    """The stub holds with -1; its chunks say which action and which chunk."""
    result = run.episode(
        inference_delay="6", chunk_size_threshold=0.5, on_starvation=on_starvation, aggregate_fn_name="latest_only"
    )
    held = (result.actions == -1).all(axis=1)
    np.testing.assert_array_equal(held_steps(result), held)
    switches = [c.merged_step for c in result.chunks if c.merged_step > 0 and not held[c.merged_step - 1]]
    assert len(switch_jumps(result)) == len(switches)


def test_where_the_simulator_waits_every_later_chunk_is_a_switch(run: Run) -> None:
    result = run.episode(inference_delay="6", chunk_size_threshold=0.5, aggregate_fn_name="latest_only")
    assert not held_steps(result).any()
    # The timestep grows by one, and the chunk's number by how far apart they were asked for.
    apart = np.diff([c.requested_step for c in result.chunks])
    assert switch_jumps(result) == pytest.approx(np.hypot(1, apart))


def test_every_episode_of_a_run_has_its_figures(run: Run) -> None:
    run.environments = [StubEnvironment(outcomes={20: SOLVED})]
    result = run.episode(inference_delay="3", chunk_size_threshold=0.5, aggregate_fn_name="latest_only")
    assert result.figures == episode_figures(result, fps=200.0)
    assert result.figures is not None
    assert result.figures.steps_to_completion == 20
    assert result.figures.max_reaction_latency_steps == 3
    assert result.figures.starved_share == 0.0
    assert result.figures.state_jerk == pytest.approx(0.0)


def test_a_run_has_means_of_what_is_known() -> None:
    episodes = [
        episode(success=success, rewards=np.zeros(length)) for success, length in ((True, 4), (True, 8), (None, 9))
    ]
    for one in episodes:
        one.figures = episode_figures(one, 20.0)
    figures = run_figures(episodes)
    assert (figures.episodes, figures.known, figures.successes, figures.success_rate) == (3, 2, 2, 1.0)
    assert figures.success_interval is not None
    assert figures.success_interval[0] == pytest.approx(0.342, abs=1e-3)
    assert figures.means["steps_to_completion"] == 6.0
    assert figures.means["action_jerk"] is None


def test_a_run_without_episodes_has_no_figures() -> None:
    figures = run_figures([])
    assert (figures.success_rate, figures.success_interval) == (None, None)
    assert set(figures.means.values()) == {None}
