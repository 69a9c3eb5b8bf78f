"""Messages of our own service, which `native.proto` describes, as bytes and back; nothing of them is pickled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.grpc.protobuf import Fields, make_messages
from async_delta_inference.transport.messages import ObservationFeatures

__all__ = [
    "MAX_REASON",
    "MESSAGES",
    "METHOD",
    "PACKAGE",
    "SERVICE",
    "decode_client",
    "decode_server",
    "goodbye",
    "join_observation",
    "new_client_message",
    "new_observation",
    "new_server_message",
    "sayable",
    "split_observation",
    "step_bytes",
]

PACKAGE = "async_delta.v1"
SERVICE = f"{PACKAGE}.Inference"
METHOD = f"/{SERVICE}/Session"

MESSAGES: dict[str, Fields] = {
    "ClientMessage": {
        "hello": (1, "Hello"),
        "observation": (2, "Observation"),
        "more": (3, "bytes"),
        "goodbye": (4, "Goodbye"),
    },
    "ServerMessage": {
        "ready": (1, "Ready"),
        "refused": (2, "Refused"),
        "bye": (3, "Bye"),
        "chunk": (4, "Chunk"),
        "error": (5, "Error"),
        "filtered": (6, "Filtered"),
    },
    "Camera": {"name": (1, "string"), "height": (2, "uint32"), "width": (3, "uint32"), "channels": (4, "uint32")},
    "Hello": {
        "version": (1, "uint32"),
        "package": (2, "string"),
        "session": (3, "bytes"),
        "resumes": (4, "bool"),
        "received": (5, "uint64"),
        "state_names": (6, "repeated string"),
        "cameras": (7, "repeated Camera"),
        "actions_per_chunk": (8, "int64"),
        "action_dim": (9, "int64"),
        "policy_type": (10, "string"),
        "pretrained_name_or_path": (11, "string"),
        "device": (12, "string"),
        "image_encoding": (13, "string"),
        "options": (14, "bytes"),
    },
    "Goodbye": {},
    "Ready": {
        "description": (1, "string"),
        "n_obs_steps": (2, "uint32"),
        "resumed": (3, "bool"),
        "received": (4, "uint64"),
        "executed_actions": (5, "uint32"),
        "committed_actions": (6, "uint32"),
        "computation": (7, "bytes"),
    },
    "Refused": {"reason": (1, "string")},
    "Bye": {"reason": (1, "string"), "is_final": (2, "bool")},
    "Observation": {
        "number": (1, "uint64"),
        "timestep": (2, "int64"),
        "episode": (3, "int64"),
        "timestamp_s": (4, "double"),
        "must_go": (5, "bool"),
        "task": (6, "string"),
        "image_bytes": (7, "repeated uint32"),
        "array_bytes": (8, "uint64"),
        "delay": (9, "uint32"),
        "received": (10, "uint64"),
        "executed_rows": (12, "uint32"),
        "prefix": (13, "bytes"),
        "arrays": (15, "bytes"),
    },
    "Chunk": {
        "number": (1, "uint64"),
        "timestep": (2, "int64"),
        "timestamp_s": (3, "double"),
        "rows": (4, "uint32"),
        "actions": (15, "bytes"),
    },
    "Error": {"number": (1, "uint64"), "timestep": (2, "int64"), "reason": (3, "string")},
    "Filtered": {"number": (1, "uint64"), "timestep": (2, "int64")},
}
"""As `native.proto` has them."""

_classes = make_messages(PACKAGE, MESSAGES)
_ClientMessage, _ServerMessage = _classes["ClientMessage"], _classes["ServerMessage"]
_Observation = _classes["Observation"]

MAX_REASON = 8192
"""Characters of what one side tells the other in words."""


def decode_client(data: bytes) -> Any:
    """A message of the client's.

    Raises:
        ProtocolError: It is none.
    """
    return _decode(_ClientMessage, data, "the client")


def decode_server(data: bytes) -> Any:
    """A message of the server's.

    Raises:
        ProtocolError: It is none.
    """
    return _decode(_ServerMessage, data, "the server")


# An observation is most of what is ever sent: its arrays are written behind the rest of their message, and read where
# they lie, instead of being copied into protobuf's message and out of it on either side.

_OBSERVATION_TAG = bytes([MESSAGES["ClientMessage"]["observation"][0] << 3 | 2])
_ARRAYS_TAG = bytes([MESSAGES["Observation"]["arrays"][0] << 3 | 2])


def join_observation(fields: Any, arrays: Sequence[Any], array_bytes: int) -> bytes:
    """The client's message of an observation, as protobuf would write it.

    Args:
        fields: The observation without its arrays.
        arrays: Bytes-like objects, contiguous.
        array_bytes: Of all of them.
    """
    head: bytes = fields.SerializeToString()
    tail = _ARRAYS_TAG + _varint(array_bytes)
    return b"".join([_OBSERVATION_TAG, _varint(len(head) + len(tail) + array_bytes), head, tail, *arrays])


def split_observation(data: bytes, array_bytes: int) -> tuple[Any, memoryview] | None:
    """A message of the client's that `join_observation` gave: its fields, and its arrays as a view.

    Returns:
        None: it is another one, or has another form.
    """
    tail = _ARRAYS_TAG + _varint(array_bytes)
    start = len(data) - array_bytes
    head_end = start - len(tail)
    if head_end < 2 or data[:1] != _OBSERVATION_TAG or data[head_end:start] != tail:
        return None
    for head_start in range(2, min(head_end, _LONGEST_VARINT + 1) + 1):
        if data[1:head_start] == _varint(len(data) - head_start):
            break
    else:
        return None
    try:
        return _Observation.FromString(data[head_start:head_end]), memoryview(data)[start:]
    except DecodeError:
        return None


_LONGEST_VARINT = 10


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def new_observation() -> Any:
    """An empty observation."""
    return _Observation()


def goodbye() -> bytes:
    """The client ends the session."""
    message = _ClientMessage()
    message.goodbye.SetInParent()
    data: bytes = message.SerializeToString()
    return data


def new_client_message() -> Any:
    """An empty message of the client's."""
    return _ClientMessage()


def _decode(kind: Any, data: bytes, sender: str) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise ProtocolError(f"{sender} sent a message that cannot be read: {exc}") from exc


def new_server_message() -> Any:
    """An empty message of the server's."""
    return _ServerMessage()


def step_bytes(features: ObservationFeatures) -> int:
    """Bytes of the arrays of one observation without its history."""
    return 4 * features.state_dim + sum(
        height * width * channels for _, (height, width, channels) in features.image_shapes
    )


def sayable(text: str) -> str:
    """A text as it may be sent."""
    # The name of a file on the server may be bytes that no text can hold.
    return text[:MAX_REASON].encode("utf-8", "replace").decode()
