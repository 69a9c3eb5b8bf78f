"""The figures over the episodes of a run."""

from __future__ import annotations

import math

import pytest
from small_result import episode, small_result

from async_delta_inference.client.record.results import ChunkRecord, EvaluationResult
from async_delta_inference.client.record.statistics import async_figures, mean, success_interval


def test_figures() -> None:
    figures = async_figures(small_result().episodes)
    low, high = figures.pop("success_interval")
    assert (low, high) == pytest.approx((15.0, 85.0), abs=0.05)
    assert figures == {
        "success_unknown": 0,
        "mean_length": 2.0,
        "control_hz": 8 / 4.0,
        "starved_steps": 3,
        "chunks": 2,
        "asynchronous_chunks": 1,
        "late_chunks": 2,
        "latency_p50_s": pytest.approx(0.2),
        "latency_p99_s": pytest.approx(0.298),
        "mean_delay_steps": 1.5,
        "reset_s": pytest.approx(0.2),
    }


def test_nothing_done_is_not_a_number() -> None:
    figures = async_figures([])
    for name in ("mean_length", "control_hz", "latency_p50_s", "latency_p99_s", "mean_delay_steps", "reset_s"):
        assert math.isnan(figures[name])
    assert all(math.isnan(end) for end in figures["success_interval"])
    assert (figures["chunks"], figures["starved_steps"]) == (0, 0)


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    [([True] * 10, 0.722, 1.0), ([False] * 10, 0.0, 0.278), ([True] * 7 + [False] * 3, 0.397, 0.892)],
)
def test_interval_is_wilsons(successes: list[bool], low: float, high: float) -> None:
    """Against the published formula's values for n = 10."""
    assert success_interval(successes) == pytest.approx((low, high), abs=5e-4)


def test_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(mean([]))
    assert mean([1.0, 2.0]) == 1.5


def test_results_add_up() -> None:
    result = small_result()
    first = result.episodes[0]
    assert (first.length, first.sum_reward, first.max_reward, first.asynchronous_chunks) == (3, 1.5, 1.0, 1)
    assert result.success_rate == 0.5
    assert result.latencies_s().tolist() == [0.1, 0.3]
    assert {key: len(episodes) for key, episodes in result.by_task().items()} == {
        ("spatial", 0): 2,
        ("spatial", 3): 1,
        ("goal", 1): 1,
    }


def test_largest_reward_need_not_be_the_last() -> None:
    result = episode("goal", 0, 0, [0.5, 2.0, -1.0], False)
    assert (result.sum_reward, result.max_reward) == (1.5, 2.0)


def test_results_of_nothing() -> None:
    assert math.isnan(EvaluationResult().success_rate)
    assert len(EvaluationResult().latencies_s()) == 0
    nothing = episode("goal", 0, 0, [], False)
    assert (nothing.length, nothing.sum_reward) == (0, 0.0)
    assert math.isnan(nothing.max_reward)


@pytest.mark.parametrize(("queued", "asynchronous"), [(0, 0), (1, 1)])
def test_chunk_is_asynchronous_when_an_action_was_still_queued(queued: int, asynchronous: int) -> None:
    chunk = ChunkRecord(0, 1, 10, 0, 0, queued, 0.1)
    assert episode("goal", 0, 0, [0.0], False, chunks=[chunk]).asynchronous_chunks == asynchronous
