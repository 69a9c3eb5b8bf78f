"""Messages of our own service, which `native.proto` describes, as bytes and back; nothing of them is pickled.

Sizes are checked before memory is touched: what a peer may send follows from what was agreed in the handshake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgpack
import numpy as np
from google.protobuf.message import DecodeError

from async_delta_inference.errors import InvalidMessageError, PolicyError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.grpc.protobuf import Fields, make_messages
from async_delta_inference.transport.link_options import IMAGE_ENCODINGS
from async_delta_inference.transport.mailbox import Filtered, Reply
from async_delta_inference.transport.messages import ActionChunk, ObservationFeatures, SessionSpec
from async_delta_inference.transport.policy_options import PolicyOptions

__all__ = [
    "MESSAGES",
    "METHOD",
    "PACKAGE",
    "SERVICE",
    "Bye",
    "Hello",
    "Ready",
    "bye",
    "decode_client",
    "decode_server",
    "encode_hello",
    "encode_reply",
    "goodbye",
    "goodbye_of",
    "join_observation",
    "new_observation",
    "new_client_message",
    "ready",
    "read_hello",
    "read_ready",
    "read_reply",
    "refused",
    "split_observation",
    "step_bytes",
]

PACKAGE = "async_delta.v1"
SERVICE = f"{PACKAGE}.Inference"
METHOD = f"/{SERVICE}/Session"
VERSION = 1

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

SESSION_BYTES = 16
MAX_CAMERAS = 64
MAX_STATE_DIM = 4096
MAX_NAME = 256
MAX_PATH = 4096
MAX_REASON = 8192
MAX_OBSERVATION_BYTES = 1 << 30
"""Of an observation with its history."""
MAX_CHUNK_BYTES = 16 << 20
MAX_OBS_STEPS = 64


# The handshake.


@dataclass(frozen=True)
class Hello:
    """The client's first message.

    Args:
        session: Random, the client's own.
        spec: What is asked for.
        resumes: Whether the session began before, on a stream that broke.
        received: Replies that the client has of it.
        image_encoding: How frames will come.
    """

    session: bytes
    spec: SessionSpec
    resumes: bool = False
    received: int = 0
    image_encoding: str = "raw"


@dataclass(frozen=True)
class Ready:
    """The server's answer: the session goes on from here.

    Args:
        description: What is served.
        n_obs_steps: Observations that the policy looks at.
        resumed: Whether it is the session that the client had.
        received: Number of its newest observation that arrived.
    """

    description: str
    n_obs_steps: int = 1
    resumed: bool = False
    received: int = 0


@dataclass(frozen=True)
class Bye:
    """The server ends the session.

    Args:
        reason: In words.
        is_final: Whether trying again is in vain.
    """

    reason: str
    is_final: bool


def encode_hello(hello: Hello) -> bytes:
    """The message that `read_hello` reads.

    Raises:
        InvalidMessageError: A number does not fit into it.
    """
    spec = hello.spec
    message = _ClientMessage()
    fields = message.hello
    try:
        fields.version, fields.package = VERSION, _package_version()
        fields.session, fields.resumes, fields.received = hello.session, hello.resumes, hello.received
        fields.state_names.extend(spec.features.state_names)
        for name, (height, width, channels) in spec.features.image_shapes:
            fields.cameras.add(name=name, height=height, width=width, channels=channels)
        fields.actions_per_chunk, fields.action_dim = spec.actions_per_chunk, spec.action_dim
        fields.policy_type, fields.pretrained_name_or_path = spec.policy_type, spec.pretrained_name_or_path
        fields.device, fields.image_encoding = spec.device, hello.image_encoding
        fields.options = msgpack.packb(spec.options.to_message())
    except (ValueError, TypeError) as exc:
        raise InvalidMessageError(f"what is asked for does not fit into a handshake: {exc}") from exc
    return _bytes_of(message)


def read_hello(data: bytes) -> Hello:
    """Read and check.

    Raises:
        SetupRefusedError: Another version, or more than a session may have.
        ProtocolError: Not a hello at all.
    """
    message = decode_client(data)
    if not message.HasField("hello"):
        raise ProtocolError("the client sent something else where its hello belongs")
    fields = message.hello
    if fields.version != VERSION:
        raise SetupRefusedError(
            f"the client speaks version {fields.version} of this protocol (package {fields.package[:40]}), the server "
            f"version {VERSION} (package {_package_version()}): install the same version on both sides"
        )
    if len(fields.session) != SESSION_BYTES:
        raise ProtocolError(f"a session is named by {SESSION_BYTES} bytes")
    if fields.image_encoding not in IMAGE_ENCODINGS:
        raise SetupRefusedError(f"the server knows images as {', '.join(IMAGE_ENCODINGS)}")
    try:
        spec = _spec_of(fields)
    except InvalidMessageError as exc:
        raise SetupRefusedError(f"the server refuses the schema: {exc}") from exc
    _check_sizes(spec)
    return Hello(fields.session, spec, fields.resumes, fields.received, fields.image_encoding)


def _spec_of(fields: Any) -> SessionSpec:
    if len(fields.cameras) > MAX_CAMERAS or len(fields.state_names) > MAX_STATE_DIM:
        raise InvalidMessageError(f"a session has at most {MAX_CAMERAS} cameras and {MAX_STATE_DIM} numbers of state")
    names = [*fields.state_names, *(camera.name for camera in fields.cameras)]
    if any(len(name) > MAX_NAME for name in names):
        raise InvalidMessageError(f"a name has at most {MAX_NAME} characters")
    texts = (fields.policy_type, fields.pretrained_name_or_path, fields.device)
    if any(len(text) > MAX_PATH for text in texts):
        raise InvalidMessageError(f"a policy's name or path has at most {MAX_PATH} characters")
    images = {camera.name: (camera.height, camera.width, camera.channels) for camera in fields.cameras}
    if len(images) != len(fields.cameras):
        raise InvalidMessageError("two cameras have the same name")
    try:
        options = PolicyOptions.from_message(msgpack.unpackb(fields.options))
    except (ValueError, msgpack.UnpackException) as exc:
        raise InvalidMessageError(f"the policy's options cannot be read: {exc}") from exc
    features = ObservationFeatures(tuple(fields.state_names), images)
    policy_type, path, device = texts
    return SessionSpec(policy_type, path, fields.actions_per_chunk, features, fields.action_dim, device, options)


def _check_sizes(spec: SessionSpec) -> None:
    observation_bytes = step_bytes(spec.features)
    chunk_bytes = 4 * spec.actions_per_chunk * spec.action_dim
    for what, size, most in (
        ("an observation", observation_bytes, MAX_OBSERVATION_BYTES),
        ("a chunk", chunk_bytes, MAX_CHUNK_BYTES),
    ):
        if size > most:
            raise SetupRefusedError(f"{what} would have {size / 1e6:.0f} MB, the server allows {most / 1e6:.0f} MB")


def step_bytes(features: ObservationFeatures) -> int:
    """Bytes of the arrays of one observation without its history."""
    return 4 * features.state_dim + sum(
        height * width * channels for _, (height, width, channels) in features.image_shapes
    )


def ready(fields: Ready) -> bytes:
    """The message that `read_ready` reads."""
    message = _ServerMessage()
    message.ready.description = _sayable(fields.description)
    message.ready.n_obs_steps = fields.n_obs_steps
    message.ready.resumed, message.ready.received = fields.resumed, fields.received
    return _bytes_of(message)


def refused(reason: str) -> bytes:
    """There will be no session."""
    message = _ServerMessage()
    message.refused.reason = _sayable(reason)
    return _bytes_of(message)


def bye(reason: str, is_final: bool) -> bytes:
    """The session is over."""
    message = _ServerMessage()
    message.bye.reason, message.bye.is_final = _sayable(reason), is_final
    return _bytes_of(message)


def read_ready(message: Any) -> Ready | Bye:
    """The server's answer to a hello.

    Args:
        message: As `decode_server` gives it.

    Raises:
        SetupRefusedError: It refused; its reason.
        ProtocolError: Anything else.
    """
    if message.HasField("refused"):
        raise SetupRefusedError(message.refused.reason[:MAX_REASON])
    if message.HasField("bye"):
        return goodbye_of(message)
    if not message.HasField("ready"):
        raise ProtocolError("the server sent something else where its answer to the handshake belongs")
    fields = message.ready
    if not 1 <= fields.n_obs_steps <= MAX_OBS_STEPS:
        raise ProtocolError(f"the server's policy looks at {fields.n_obs_steps} observations at once")
    return Ready(fields.description[:MAX_REASON], fields.n_obs_steps, fields.resumed, fields.received)


def goodbye_of(message: Any) -> Bye:
    """The server's goodbye."""
    return Bye(message.bye.reason[:MAX_REASON], message.bye.is_final)


# Replies.


def encode_reply(number: int, reply: Reply) -> bytes:
    """A reply as the server sends it."""
    message = _ServerMessage()
    fields: Any
    if isinstance(reply, ActionChunk):
        fields = message.chunk
        fields.timestamp_s, fields.rows = reply.timestamp_s, len(reply)
        fields.actions = bytes(reply.memory) if reply.memory is not None else reply.actions.tobytes()
    elif isinstance(reply, PolicyError):
        fields = message.error
        fields.reason = _sayable(str(reply))
    else:
        fields = message.filtered
    fields.number, fields.timestep = number, reply.timestep
    return _bytes_of(message)


def read_reply(message: Any, spec: SessionSpec, sender: str) -> tuple[int, Reply]:
    """A reply and its number.

    Args:
        message: As `decode_server` gives it.
        spec: What was agreed.
        sender: Names the server in messages to humans.

    Raises:
        ProtocolError: It is none, or none of this session.
    """
    if message.HasField("chunk"):
        return message.chunk.number, _read_chunk(message.chunk, spec)
    if message.HasField("error"):
        fields = message.error
        return fields.number, PolicyError(f"{sender} failed: {fields.reason[:MAX_REASON]}", fields.timestep)
    if message.HasField("filtered"):
        return message.filtered.number, Filtered(message.filtered.timestep)
    raise ProtocolError(f"{sender} sent what is no reply")


def _read_chunk(fields: Any, spec: SessionSpec) -> ActionChunk:
    rows, data = fields.rows, fields.actions
    if not 1 <= rows <= spec.actions_per_chunk or len(data) != 4 * rows * spec.action_dim:
        raise ProtocolError(
            f"the server sent {len(data)} bytes of {rows} actions; agreed were 1 to {spec.actions_per_chunk} of "
            f"{spec.action_dim} float32"
        )
    memory = bytearray(data)
    actions = np.frombuffer(memory, np.float32).reshape(rows, spec.action_dim)
    return ActionChunk(actions, fields.timestep, fields.timestamp_s, memory=memory)


# Shared by the above.


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
    return _bytes_of(message)


def new_client_message() -> Any:
    """An empty message of the client's."""
    return _ClientMessage()


def _decode(kind: Any, data: bytes, sender: str) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise ProtocolError(f"{sender} sent a message that cannot be read: {exc}") from exc


def _bytes_of(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _sayable(text: str) -> str:
    # The name of a file on the server may be bytes that no text can hold.
    return text[:MAX_REASON].encode("utf-8", "replace").decode()


def _package_version() -> str:
    try:
        return version("async-delta-inference")
    except PackageNotFoundError:
        return "unknown"
