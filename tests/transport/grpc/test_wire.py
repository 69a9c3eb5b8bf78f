"""The bytes on the gRPC wire, golden against lerobot's own: what RobotClient and PolicyServer write and read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport import ActionChunk, Observation, ObservationFeatures, SessionSpec
from async_delta_inference.transport.grpc.wire import (
    ENVIRONMENT_DT_S,
    decode_actions,
    decode_observation,
    decode_policy,
    encode_actions,
    encode_observation,
    encode_policy,
    longest_observation,
)

FEATURES = ObservationFeatures(("x", "y"), {"front": (4, 6, 3)})


def some_observation() -> Observation:
    observation = Observation.empty(FEATURES)
    observation.state[:] = (0.1, -2.5)
    observation.images["front"][:] = np.arange(72).reshape(4, 6, 3)
    observation.timestep, observation.task, observation.timestamp_s = 12, "lift", 3.25
    return observation


def raw(**changes: Any) -> dict[str, Any]:
    return {"x": 0.5, "y": -2.5, "front": np.full((4, 6, 3), 9, np.uint8), "task": "lift"} | changes


def observation_bytes(protocol: int = pickle.DEFAULT_PROTOCOL, must_go: Any = True, **changes: Any) -> bytes:
    """A SendObservations payload exactly as RobotClient makes it."""
    return pickle.dumps(TimedObservation(3.25, 12, raw(**changes), must_go), protocol)


def chunk_bytes(actions: torch.Tensor, first: int = 7) -> bytes:
    """A GetActions reply exactly as PolicyServer makes it."""
    return pickle.dumps([TimedAction(1.5 + i, first + i, row) for i, row in enumerate(list(actions))])


# What our client writes.


def test_observation_is_the_bytes_that_robot_client_sends() -> None:
    observation = some_observation()
    expected_raw = {
        "x": float(np.float32(0.1)),
        "y": -2.5,
        "front": observation.images["front"],
        "task": "lift",
    }
    expected = pickle.dumps(TimedObservation(timestamp=3.25, observation=expected_raw, timestep=12, must_go=True))
    assert encode_observation(observation, FEATURES) == expected


def test_policy_is_the_bytes_that_robot_client_sends() -> None:
    spec = SessionSpec("act", "some/where", 50, FEATURES, 7, "cpu")
    expected = pickle.dumps(RemotePolicyConfig("act", "some/where", FEATURES.to_lerobot(), 50, "cpu"))
    assert encode_policy(spec) == expected


# What our client reads.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (50, 7), (100, 14)])
def test_chunk_is_read_as_policy_server_writes_it(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    actions = torch.randn(shape).to(dtype)
    chunk = decode_actions(chunk_bytes(actions))
    assert chunk.timestep == 7
    assert chunk.timestamp_s == 1.5
    assert chunk.actions.dtype == np.float32
    np.testing.assert_array_equal(chunk.actions, actions.float().numpy())
    chunk.actions[:] = 0.0  # its receiver's own


def test_views_that_are_not_contiguous_are_read() -> None:
    actions = torch.arange(24.0).reshape(4, 6)[:, ::2]
    np.testing.assert_array_equal(decode_actions(chunk_bytes(actions)).actions, actions.numpy())


def test_rows_of_one_number_repeated_are_read() -> None:
    actions = torch.ones(1, 1).expand(2, 3)
    np.testing.assert_array_equal(decode_actions(chunk_bytes(actions)).actions, np.ones((2, 3)))


# What our server reads.


@pytest.mark.parametrize(
    "spec", [SessionSpec("act", "some/where", 50, FEATURES, 7), SessionSpec("", "", 1, FEATURES, 7)]
)
def test_policy_is_read_as_robot_client_writes_it(spec: SessionSpec) -> None:
    assert decode_policy(encode_policy(spec)).spec(action_dim=7) == spec


def test_observation_is_read_without_copying_its_images() -> None:
    sent = some_observation()
    data = encode_observation(sent, FEATURES)
    observation = decode_observation(data, FEATURES)
    np.testing.assert_array_equal(observation.state, sent.state)
    np.testing.assert_array_equal(observation.images["front"], sent.images["front"])
    assert (observation.timestep, observation.task, observation.timestamp_s) == (12, "lift", 3.25)
    assert observation.must_go
    assert not observation.images["front"].flags.writeable
    assert np.shares_memory(observation.images["front"], np.frombuffer(data, np.uint8))
    assert len(data) <= longest_observation(FEATURES)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda image: image,
        np.asfortranarray,
        lambda image: image[::-1, :, ::-1],
        lambda image: np.ascontiguousarray(image.transpose(1, 0, 2)).transpose(1, 0, 2),
    ],
)
def test_any_array_of_numpys_is_read(protocol: int, make: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    image = make(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    observation = decode_observation(observation_bytes(protocol, front=image), FEATURES)
    np.testing.assert_array_equal(observation.images["front"], image)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("number", [3, True, np.float32(1.5), np.float64(-2.0), np.int64(7), np.array([2.5]), 1e300])
def test_any_number_is_read_as_policy_server_reads_it(protocol: int, number: Any) -> None:
    observation = decode_observation(observation_bytes(protocol, x=number), FEATURES)
    with np.errstate(over="ignore"):
        expected = np.array([float(np.asarray(number).reshape(())), -2.5], np.float32)
    np.testing.assert_array_equal(observation.state, expected)


def test_what_the_features_do_not_name_is_left_out_as_policy_server_does() -> None:
    observation = decode_observation(observation_bytes(more=1.0, wrist=np.zeros((2, 2, 3), np.uint8)), FEATURES)
    assert set(observation.images) == {"front"}


def test_task_may_be_missing() -> None:
    timed = TimedObservation(3.25, 12, {name: value for name, value in raw().items() if name != "task"}, True)
    assert decode_observation(pickle.dumps(timed), FEATURES).task == ""


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"front": np.zeros((4, 6, 3), np.float32)}, "image 'front'"),
        ({"front": np.zeros((6, 4, 3), np.uint8)}, "image 'front'"),
        ({"front": np.zeros((4, 6, 3), ">u2")}, "byte order"),
        ({"front": np.array(["text"])}, "no number's"),
        ({"front": torch.zeros(4, 6, 3)}, "torch"),
        ({"front": [[1]]}, "'front' is a list"),
        ({"x": "1.0"}, "'x' is a str"),
        ({"x": 10**400}, "message that cannot be read|beyond 64 bits|operation"),
        ({"x": np.zeros(2)}, "'x' is a"),
        ({"task": 3}, "'task' must be of type str"),
        ({"task": "x" * 5000}, "at most"),
        ({"must_go": 1}, "'must_go' must be of type bool"),
    ],
)
def test_observation_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode_observation(observation_bytes(**changes), FEATURES)


@pytest.mark.parametrize("name", ["x", "front"])
def test_observation_that_lacks_something_is_refused_by_name(name: str) -> None:
    timed = TimedObservation(3.25, 12, {key: value for key, value in raw().items() if key != name}, True)
    with pytest.raises(ProtocolError, match=f"left out '{name}'"):
        decode_observation(pickle.dumps(timed), FEATURES)


@pytest.mark.parametrize(("timestamp", "timestep"), [(float("nan"), 1), (1.0, -1), (1.0, 2**70), (1.0, True), ("1", 1)])
def test_observation_of_no_time_is_refused(timestamp: Any, timestep: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_observation(pickle.dumps(TimedObservation(timestamp, timestep, raw(), True)), FEATURES)


STATE = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
IMAGE = {"dtype": "image", "shape": (4, 6, 3), "names": ["height", "width", "channels"]}


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        ({}, "needs a state"),
        ({"observation.state": STATE | {"shape": (3,)}}, "another shape"),
        ({"observation.state": STATE | {"shape": 2}}, "another shape"),
        ({"observation.state": STATE | {"names": None}}, "name its elements"),
        ({"observation.state": STATE | {"names": ["x", "x"]}}, "must differ"),
        ({"observation.state": STATE, "observation.images.a": IMAGE | {"shape": (4, 6)}}, "observation.images.a"),
        ({"observation.state": STATE, "observation.images.a": IMAGE | {"shape": (4, 6, -3)}}, "positive"),
        ({"observation.state": STATE, "observation.images.a": IMAGE | {"shape": (4, 6, True)}}, "positive"),
        ({"observation.state": STATE, "observation.effort": STATE}, "observation.effort"),
        ({"observation.state": STATE, "observation.images.a": 3}, "observation.images.a"),
        ([], "'lerobot_features' must be of type dict"),
    ],
)
def test_features_that_cannot_be_served_are_refused_by_name(features: Any, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode_policy(pickle.dumps(RemotePolicyConfig("act", "a/b", features, 50)))


def test_renamed_cameras_are_refused() -> None:
    config = RemotePolicyConfig("act", "a/b", FEATURES.to_lerobot(), 50, rename_map={"a": "b"})
    with pytest.raises(ProtocolError, match="rename_map"):
        decode_policy(pickle.dumps(config))


# What our server writes.


@pytest.mark.parametrize("shape", [(1, 1), (50, 7), (300, 14)])
def test_reply_gives_robot_client_what_policy_servers_gives(shape: tuple[int, int]) -> None:
    actions = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ours = pickle.loads(encode_actions(ActionChunk(actions, 7, 1.5)))
    rows = list(torch.from_numpy(actions))
    theirs = [TimedAction(1.5 + i * ENVIRONMENT_DT_S, 7 + i, row) for i, row in enumerate(rows)]
    for our_action, their_action in zip(ours, theirs, strict=True):
        assert type(our_action) is TimedAction
        assert (our_action.timestamp, our_action.timestep) == (their_action.timestamp, their_action.timestep)
        assert our_action.action.dtype is torch.float32
        assert torch.equal(our_action.action, their_action.action)


def test_reply_does_not_grow_with_the_square_of_its_length() -> None:
    actions = np.zeros((400, 14), np.float32)
    assert len(encode_actions(ActionChunk(actions, 0))) < 4 * actions.nbytes


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**62), st.floats(0, 1e10))
def test_both_halves_understand_each_other(rows: int, width: int, timestep: int, timestamp_s: float) -> None:
    actions = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    chunk = decode_actions(encode_actions(ActionChunk(actions, timestep, timestamp_s)), rows)
    np.testing.assert_array_equal(chunk.actions, actions)
    assert (chunk.timestep, chunk.timestamp_s) == (timestep, timestamp_s)
