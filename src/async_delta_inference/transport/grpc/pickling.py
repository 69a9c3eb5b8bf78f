"""Writes the pickles that LeRobot's own classes would give, without those classes: LeRobot and torch stay unloaded.

Names of classes, and what they hold, are facts of the wire. The bytes are those that ``pickle.dumps`` gives for
LeRobot's objects; tests compare them.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dumps_actions", "dumps_observation", "dumps_policy"]

_HELPERS = "lerobot.async_inference.helpers"


class _StandIn:
    """For an object of LeRobot's: only its name and what it holds are written."""


class _TimedObservation(_StandIn):
    pass


class _RemotePolicyConfig(_StandIn):
    pass


_NAMES: dict[object, tuple[str, str]] = {
    _TimedObservation: (_HELPERS, "TimedObservation"),
    _RemotePolicyConfig: (_HELPERS, "RemotePolicyConfig"),
}


_PurePickler: Any = pickle._Pickler  # type: ignore[attr-defined,unused-ignore]


class _Pickler(_PurePickler):  # type: ignore[misc]
    """Writes a stand-in's class as the class that it stands for. Python's own, since the one in C looks classes up."""

    def save_global(self, obj: object, name: str | None = None) -> None:
        names = _NAMES.get(obj) if isinstance(obj, type) else None
        if names is None:
            super().save_global(obj, name)
            return
        for text in names:
            self.save(text)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _dumps(kind: type[_StandIn], fields: dict[str, Any]) -> bytes:
    stand_in = kind()
    stand_in.__dict__.update(fields)
    buffer = io.BytesIO()
    _Pickler(buffer).dump(stand_in)
    return buffer.getvalue()


def dumps_observation(timestamp_s: float, timestep: int, raw: dict[str, Any], must_go: bool) -> bytes:
    """A ``TimedObservation``."""
    fields = {"timestamp": timestamp_s, "timestep": timestep, "observation": raw, "must_go": must_go}
    return _dumps(_TimedObservation, fields)


def dumps_policy(
    policy_type: str, pretrained_name_or_path: str, features: dict[str, Any], actions_per_chunk: int, device: str
) -> bytes:
    """A ``RemotePolicyConfig``."""
    return _dumps(
        _RemotePolicyConfig,
        {
            "policy_type": policy_type,
            "pretrained_name_or_path": pretrained_name_or_path,
            "lerobot_features": features,
            "actions_per_chunk": actions_per_chunk,
            "device": device,
            "rename_map": {},
        },
    )


# Chunks: a list of TimedAction, each with a row of one float tensor. PolicyServer's pickler writes the whole chunk with
# each of its rows; this writes it once, and the rows refer to it.

_PROTO = b"\x80\x04"


def dumps_actions(records: Sequence[tuple[float, int]], actions: NDArray[np.float32]) -> bytes:
    """The pickle of a chunk, readable by RobotClient.

    Args:
        records: Timestamp (s) and timestep of each action.
        actions: float32 (n, A), one row per record.
    """
    storage = _global("torch.storage", "_load_from_bytes") + _bytes(_dumps_storage(actions)) + b"\x85R"
    named = [
        _global(_HELPERS, "TimedAction"),
        _global("torch._utils", "_rebuild_tensor_v2"),
        storage,
        _global("collections", "OrderedDict"),
    ]
    # Written with the first row, which the others refer to.
    action, tensor, storage, odict = (thing + b"q" + bytes([number]) for number, thing in enumerate(named))
    width = actions.shape[1]
    parts = [_PROTO, b"]("]
    for row, (timestamp_s, timestep) in enumerate(records):
        parts += [
            # TimedAction.__new__, then its state.
            *(action, b")\x81}("),
            *(_text("timestamp"), b"G", struct.pack(">d", timestamp_s)),
            *(_text("timestep"), _integer(timestep)),
            *(_text("action"), tensor, b"(", storage),
            *(_integer(row * width), _integer(width), b"\x85", _integer(1), b"\x85\x89", odict, b")RtR"),
            b"ub",
        ]
        action, tensor, storage, odict = (b"h" + bytes([number]) for number in range(len(named)))
    return b"".join([*parts, b"e."])


def _dumps_storage(actions: NDArray[np.float32]) -> bytes:
    """What ``torch.save`` writes for the storage of a float tensor in its older format."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    key = _text("0")
    elements = np.ascontiguousarray(actions, "<f4")
    reference = (
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + key + _text("cpu") + _integer(elements.size) + b"Nt"
    )
    return b"".join(
        [
            pickle.dumps(0x1950A86A20F9469CFC6C, 2),
            pickle.dumps(1001, 2),
            pickle.dumps(system, 2),
            b"\x80\x02" + reference + b"Q.",
            b"\x80\x02](" + key + b"e.",
            struct.pack("<q", elements.size),
            elements.tobytes(),
        ]
    )


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data
