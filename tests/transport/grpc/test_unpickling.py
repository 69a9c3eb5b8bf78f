"""Whoever forges the bytes on the gRPC wire, in either direction."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport import Observation, ObservationFeatures, SessionSpec
from async_delta_inference.transport.grpc.wire import (
    decode_actions,
    decode_observation,
    decode_policy,
    encode_observation,
    encode_policy,
)

FEATURES = ObservationFeatures(("x", "y"), {"front": (4, 6, 3)})
READERS: dict[str, Callable[[bytes], object]] = {
    "actions": decode_actions,
    "observation": lambda data: decode_observation(data, FEATURES),
    "policy": decode_policy,
}
reader = pytest.mark.parametrize("read", list(READERS.values()), ids=list(READERS))


def chunk_bytes(actions: torch.Tensor) -> bytes:
    return pickle.dumps([TimedAction(1.5 + i, 7 + i, row) for i, row in enumerate(list(actions))])


# Nothing that the bytes name is run.


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@reader
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_message_runs_nothing(read: Callable[[bytes], object], protocol: int, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    bomb = RunsCode(trap)
    for thing in (
        bomb,
        [TimedAction(0.0, 0, bomb)],
        TimedObservation(0.0, 0, {"x": bomb}),
        RemotePolicyConfig("act", "a", {"observation.state": bomb}, 1),
    ):
        with pytest.raises(ProtocolError):
            read(pickle.dumps(thing, protocol))
        assert not trap.exists()
    pickle.loads(pickle.dumps(bomb))  # the trap does work where nobody looks
    assert trap.exists()


@reader
def test_what_a_message_may_not_name_is_named(read: Callable[[bytes], object], tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="mkdir"):
        read(pickle.dumps(RunsCode(tmp_path / "trap")))


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


def test_hostile_dtype_runs_nothing() -> None:
    class Image:
        def __reduce__(self) -> tuple:
            return (
                np.ndarray.__reduce__(np.zeros(1, "O"))[0],
                (np.ndarray, (0,), b"b"),
                (1, (1,), np.dtype("O"), False, [1]),
            )

    with pytest.raises(ProtocolError):
        decode_observation(pickle.dumps(TimedObservation(0.0, 0, {"x": 0.0, "y": 0.0, "front": Image()})), FEATURES)


# Little is taken, whatever the bytes ask for.


def taken_bytes(read: Callable[[bytes], object], data: bytes) -> int:
    """How much the process has grown at its largest."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProtocolError):
        read(data)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


BOMBS = {
    "memo index": b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "integer": b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b".",
    "many": b"\x80\x04" + b"N" * 200_000_000 + b".",
    "sets": b"\x80\x04" + b"\x8f" * 50_000_000 + b".",
    "dictionaries": b"\x80\x04" + b"}" * 50_000_000 + b".",
    "name that does not end": b"\x80\x04c" + b"x" * 50_000_000,
}


@reader
@pytest.mark.parametrize("bomb", list(BOMBS))
def test_bomb_takes_no_memory(read: Callable[[bytes], object], bomb: str) -> None:
    assert taken_bytes(read, BOMBS[bomb]) < 100_000_000


@reader
def test_key_that_takes_for_ever_to_hash_is_refused(read: Callable[[bytes], object]) -> None:
    # A tuple of two of the last, 200 times: its hash asks 2**200 times for that of the first.
    nested = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(200))
    with pytest.raises(ProtocolError, match="keys"):
        read(b"\x80\x04)\x94" + nested + b"}h\xc8Ns.")


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
        (0, (1 << 70,), (0,)),
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


def test_many_rows_of_one_number_take_no_memory() -> None:
    rows = [TimedAction(0.0, i, Tensor(0, (1 << 20,), (0,))) for i in range(1000)]
    assert taken_bytes(decode_actions, pickle.dumps(rows)) < 100_000_000


# Replies of another kind.


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
        pickle.dumps([TimedAction(0.0, True, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, 2**70, torch.zeros(7))]),
        pickle.dumps([TimedAction("0", 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(10**400, 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(10**200, 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(float("nan"), 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(float("inf"), 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(True, 0, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, -1, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, 0, torch.zeros(7)), TimedAction(0.0, 2, torch.zeros(7))]),
        pickle.dumps([TimedAction(0.0, 0, torch.zeros(7)), TimedAction(0.0, 1, torch.zeros(6))]),
        pickle.dumps([TimedAction(0.0, 0, torch.zeros(7, dtype=torch.int64))]),
    ],
)
def test_reply_of_another_kind_is_refused(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_actions(reply)


# Any bytes at all.


def _good_observation() -> bytes:
    observation = Observation.empty(FEATURES)
    observation.state[:] = 0.5
    observation.images["front"][:] = 9
    return encode_observation(observation, FEATURES)


# Once: torch writes an address into it, so that its length changes from one pickling to the next.
GOOD = {
    "actions": chunk_bytes(torch.arange(6.0).reshape(3, 2)),
    "observation": _good_observation(),
    "policy": encode_policy(SessionSpec("act", "a/b", 5, FEATURES, 3)),
}
OPCODES = st.sampled_from([opcode.code.encode("latin1") for opcode in pickletools.opcodes])


@pytest.mark.parametrize("kind", list(READERS))
@settings(max_examples=300)
@given(st.data())
def test_any_bytes_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """The one invariant: a message, or the protocol error; never anything else."""
    good = GOOD[kind]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 20)))
    forged = data.draw(st.one_of(st.binary(max_size=20), st.lists(OPCODES, max_size=6).map(b"".join)))
    try:
        READERS[kind](good[:start] + forged + good[end:])
    except ProtocolError:
        return


@reader
@given(st.lists(st.one_of(OPCODES, st.binary(min_size=1, max_size=4)), max_size=60))
def test_any_program_is_refused(read: Callable[[bytes], object], operations: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        read(b"\x80\x04" + b"".join(operations) + b".")


@pytest.mark.parametrize("kind", list(READERS))
def test_no_message_is_read_when_it_is_cut_short(kind: str) -> None:
    for end in range(len(GOOD[kind])):
        with pytest.raises(ProtocolError):
            READERS[kind](GOOD[kind][:end])


def test_circles_are_no_trap() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for read in READERS.values():
        with pytest.raises(ProtocolError):
            read(pickle.dumps(circle))
