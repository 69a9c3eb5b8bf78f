"""The bytes on the gRPC wire: golden against lerobot's own, and against whoever forges them."""

from __future__ import annotations

import collections
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation

from async_delta_inference.errors import PolicyError, ProtocolError
from async_delta_inference.transport import Observation, ObservationFeatures, SessionSpec
from async_delta_inference.transport.grpc.unpickling import loads_actions
from async_delta_inference.transport.grpc.wire import decode_actions, encode_observation, encode_policy

FEATURES = ObservationFeatures(("x", "y"), {"front": (4, 6, 3)})


def chunk_bytes(actions: torch.Tensor, first: int = 7) -> bytes:
    """A GetActions reply exactly as PolicyServer makes it."""
    return pickle.dumps([TimedAction(1.5 + i, first + i, row) for i, row in enumerate(list(actions))])


# Golden: what RobotClient and PolicyServer write.


def test_observation_is_the_bytes_that_robot_client_sends() -> None:
    observation = Observation.empty(FEATURES)
    observation.state[:] = (0.1, -2.5)
    observation.images["front"][:] = 9
    observation.timestep, observation.task, observation.timestamp_s = 12, "lift", 3.25
    raw = {"x": float(np.float32(0.1)), "y": -2.5, "front": np.full((4, 6, 3), 9, np.uint8), "task": "lift"}
    expected = pickle.dumps(TimedObservation(timestamp=3.25, observation=raw, timestep=12, must_go=True))
    assert encode_observation(observation, FEATURES) == expected


def test_policy_is_the_bytes_that_robot_client_sends() -> None:
    spec = SessionSpec("act", "some/where", 50, FEATURES, 7, "cpu")
    expected = pickle.dumps(RemotePolicyConfig("act", "some/where", FEATURES.to_lerobot(), 50, "cpu"))
    assert encode_policy(spec) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (50, 7), (100, 14)])
def test_chunk_is_read_as_policy_server_writes_it(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    actions = torch.randn(shape).to(dtype)
    chunk = decode_actions(chunk_bytes(actions))
    assert chunk.timestep == 7
    assert chunk.timestamp_s == 1.5
    assert chunk.actions.dtype == np.float32
    np.testing.assert_array_equal(chunk.actions, actions.float().numpy())


def test_views_that_are_not_contiguous_are_read() -> None:
    actions = torch.arange(24.0).reshape(4, 6)[:, ::2]
    np.testing.assert_array_equal(decode_actions(chunk_bytes(actions)).actions, actions.numpy())


# Hostile replies.


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def test_hostile_reply_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for data in (pickle.dumps(RunsCode(trap)), pickle.dumps([TimedAction(0.0, 0, RunsCode(trap))])):
        with pytest.raises(ProtocolError, match="mkdir"):
            decode_actions(data)
        assert not trap.exists()
    pickle.loads(pickle.dumps(RunsCode(trap)))  # the trap does work where nobody looks
    assert trap.exists()


def test_hostile_tensor_storage_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Storage:
        def __reduce__(self) -> tuple:
            buffer = io.BytesIO()
            torch.save(RunsCode(trap), buffer)
            return (torch.storage._load_from_bytes, (buffer.getvalue(),))

    with pytest.raises(ProtocolError):
        decode_actions(pickle.dumps([Storage()]))
    assert not trap.exists()


class Tensor:
    """Pickles as a tensor with a layout of our choice."""

    def __init__(self, offset: object, size: object, stride: object) -> None:
        self.layout = (offset, size, stride)

    def __reduce__(self) -> tuple:
        storage = torch.zeros(14)._typed_storage()
        return (torch._utils._rebuild_tensor_v2, (storage, *self.layout, False, collections.OrderedDict()))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (15,), (1,)),
        (8, (7,), (1,)),
        (0, (7,), (3,)),
        (-1, (7,), (1,)),
        (0, (7,), (-1,)),
        (0, (0,), (1,)),
        (0, (1 << 40,), (0,)),
        (0, (2, 7), (7, 1)),
        (0, (), ()),
        (0.0, (7,), (1,)),
        (0, (True,), (1,)),
        (0, "7", "1"),
    ],
)
def test_tensor_outside_its_storage_is_refused(offset: object, size: object, stride: object) -> None:
    with pytest.raises(ProtocolError):
        decode_actions(pickle.dumps([TimedAction(0.0, 0, Tensor(offset, size, stride))]))


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"x",
        pickle.dumps([]),
        pickle.dumps({}),
        pickle.dumps([1]),
        pickle.dumps([collections.OrderedDict()]),
        pickle.dumps([TimedAction(0.0, 0, "action")]),
        pickle.dumps([TimedAction(0.0, "0", torch.zeros(7))]),
        pickle.dumps([TimedAction("0", 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, -1, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, 0, torch.zeros(7)), TimedAction(0.0, 2, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, 0, torch.zeros(7)), TimedAction(0.0, 1, torch.zeros(6))]),
    ],
)
def test_reply_of_another_kind_is_refused(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_actions(reply)


def test_actions_that_are_not_finite_are_the_policys_error() -> None:
    with pytest.raises(PolicyError, match="finite") as info:
        decode_actions(chunk_bytes(torch.tensor([[1.0, torch.nan]])))
    assert info.value.timestep == 7


# Once: torch writes an address into it, so that its length changes from one pickling to the next.
GOOD_REPLY = chunk_bytes(torch.arange(6.0).reshape(3, 2))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """The one invariant: a list of actions, or the protocol error; never anything else."""
    start = data.draw(st.integers(0, len(GOOD_REPLY)))
    end = data.draw(st.integers(start, len(GOOD_REPLY)))
    forged = GOOD_REPLY[:start] + data.draw(st.binary(max_size=40)) + GOOD_REPLY[end:]
    try:
        records = loads_actions(forged)
    except ProtocolError:
        return
    assert all(record.action.ndim == 1 for record in records)
