"""The queue: nothing lost, nothing twice, and LeRobot's own arithmetic."""

from __future__ import annotations

import threading
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.control.aggregation import (
    aggregate_function,
    register_aggregate_function,
)
from async_delta_inference.errors import ConfigError, ProtocolError
from async_delta_inference.transport import ActionChunk


def chunk(first: int, length: int, value: float | None = None) -> ActionChunk:
    """Actions that hold their timestep, or all of one value."""
    column = np.arange(first, first + length) if value is None else np.full(length, value)
    return ActionChunk(np.repeat(column.astype(np.float32)[:, None], 2, axis=1), first)


def queue(name: str = "latest_only") -> ActionQueue:
    return ActionQueue(2, aggregate_function(name))


def drain(actions: ActionQueue) -> list[float]:
    return [float(actions.pop()[0]) for _ in range(len(actions))]


def test_first_action_of_a_chunk_is_not_lost() -> None:
    actions = queue()
    actions.merge(chunk(0, 3))
    executed = drain(actions)
    actions.merge(chunk(3, 3))  # the observation after action 2 is the input for action 3
    assert executed + drain(actions) == [0, 1, 2, 3, 4, 5]


def test_executed_timesteps_are_dropped_and_counted() -> None:
    actions = queue()
    actions.merge(chunk(0, 4))
    actions.pop()
    actions.pop()
    merge = actions.merge(chunk(1, 4))
    assert (merge.stale, merge.aggregated, merge.appended) == (1, 2, 1)
    assert drain(actions) == [2, 3, 4]


def test_chunk_that_is_wholly_stale_changes_nothing() -> None:
    actions = queue()
    actions.merge(chunk(0, 6))
    for _ in range(4):
        actions.pop()
    merge = actions.merge(chunk(0, 3, value=99.0))
    assert (merge.stale, merge.aggregated, merge.appended) == (3, 0, 0)
    assert drain(actions) == [4, 5]


def test_short_chunk_keeps_the_queued_tail() -> None:
    actions = queue()
    actions.merge(chunk(0, 5))
    actions.merge(chunk(0, 2, value=9.0))
    assert drain(actions) == [9, 9, 2, 3, 4]


def test_chunk_from_the_future_is_refused() -> None:
    with pytest.raises(ProtocolError):
        queue().merge(chunk(1, 3))


def test_skipped_timesteps_stay_skipped() -> None:
    actions = queue()
    actions.skip()
    actions.skip()
    actions.merge(chunk(0, 4))
    assert drain(actions) == [2, 3]


def test_new_episode_forgets_actions_but_not_timesteps() -> None:
    actions = queue()
    actions.merge(chunk(0, 5))
    actions.pop()
    actions.start_episode()
    assert len(actions) == 0
    assert actions.next_timestep == 1
    assert actions.chunk_size == 5


@pytest.mark.parametrize(
    ("queued", "threshold", "wanted"),
    [(0, 0.0, True), (1, 0.0, False), (5, 0.5, True), (6, 0.5, False), (10, 1.0, True)],
)
def test_threshold_is_the_fraction_of_a_chunk_that_is_left(queued: int, threshold: float, wanted: bool) -> None:
    actions = queue()
    actions.merge(chunk(0, 10))
    for _ in range(10 - queued):
        actions.pop()
    assert actions.wants_observation(threshold) is wanted


def test_length_of_a_chunk_is_that_of_the_longest_so_far() -> None:
    """A short one in between does not make the queue look full."""
    actions = queue()
    actions.merge(chunk(0, 10))
    actions.merge(chunk(0, 2))
    assert actions.chunk_size == 10
    for _ in range(8):
        actions.pop()
    assert not actions.wants_observation(0.1)


@pytest.mark.parametrize(("length", "wanted"), [(-3, True), (0, True), (5, True), (6, False)])
def test_length_may_be_that_of_another_time(length: int, wanted: bool) -> None:
    actions = queue()
    actions.merge(chunk(0, 10))
    assert actions.wants_observation(0.5, length) is wanted


def test_actions_stay_float32_whatever_combines_them() -> None:
    register_aggregate_function("test_float64", lambda old, new: old.astype(np.float64) + new)
    actions = queue("test_float64")
    actions.merge(chunk(0, 2))
    actions.merge(chunk(0, 3))
    assert all(actions.pop().dtype == np.float32 for _ in range(3))


def test_empty_queue_always_wants_an_observation() -> None:
    assert queue().wants_observation(0.0)


def test_unknown_function_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="weighted_average"):
        aggregate_function("median")


def test_own_function_can_be_registered() -> None:
    register_aggregate_function("test_oldest", lambda old, new: old)
    actions = queue("test_oldest")
    actions.merge(chunk(0, 2))
    actions.merge(chunk(0, 3, value=9.0))
    assert drain(actions) == [0, 1, 9]


def upstream_merge(
    queued: ActionChunk, executed: int, incoming: ActionChunk, name: str
) -> list[tuple[int, np.ndarray]]:
    """The same merge by lerobot's own RobotClient, whose labels call ``executed - 1`` the latest action."""
    import torch
    from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS
    from lerobot.async_inference.helpers import TimedAction
    from upstream import robot_client_class

    def timed(actions: ActionChunk) -> list[TimedAction]:
        return [TimedAction(0.0, actions.timestep + i, torch.from_numpy(row)) for i, row in enumerate(actions.actions)]

    client = SimpleNamespace(
        action_queue=Queue(),
        action_queue_lock=threading.Lock(),
        latest_action_lock=threading.Lock(),
        latest_action=executed - 1,
    )
    for action in timed(queued)[executed - queued.timestep :]:
        client.action_queue.put(action)
    robot_client_class()._aggregate_action_queues(client, timed(incoming), AGGREGATE_FUNCTIONS[name])
    return [(action.get_timestep(), action.get_action().numpy()) for action in client.action_queue.queue]


@pytest.mark.parametrize("name", ["weighted_average", "latest_only", "average", "conservative"])
@given(seed=st.integers(0, 2**32 - 1), executed=st.integers(0, 8), lag=st.integers(0, 8))
def test_merge_is_robot_clients_bit_for_bit(name: str, seed: int, executed: int, lag: int) -> None:
    """Where upstream loses nothing (the incoming chunk reaches at least as far as the queue) both agree exactly."""
    rng = np.random.default_rng(seed)
    first = ActionChunk(rng.normal(size=(8, 2)).astype(np.float32), 0)
    second = ActionChunk(rng.normal(size=(8, 2)).astype(np.float32), max(0, executed - lag))
    actions = queue(name)
    actions.merge(first)
    for _ in range(executed):
        actions.pop()
    actions.merge(second)
    expected = upstream_merge(first, executed, second, name)
    assert [timestep for timestep, _ in expected] == list(range(executed, executed + len(actions)))
    for _, action in expected:
        np.testing.assert_array_equal(actions.pop(), action)


def test_names_are_lerobots() -> None:
    from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS

    for name in AGGREGATE_FUNCTIONS:
        assert callable(aggregate_function(name))
