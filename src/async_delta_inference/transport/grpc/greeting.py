"""How a session of our own service begins and ends. Whatever a peer asks for is bounded before memory is touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgpack

from async_delta_inference.errors import InvalidMessageError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.action_prefix import NO_PREFIX, PrefixLimits
from async_delta_inference.transport.computation import Computation, checked_computation
from async_delta_inference.transport.grpc import native
from async_delta_inference.transport.link_options import IMAGE_ENCODINGS
from async_delta_inference.transport.messages import ObservationFeatures, SessionSpec
from async_delta_inference.transport.policy_options import PolicyOptions

__all__ = [
    "Bye",
    "Hello",
    "Ready",
    "bye",
    "encode_hello",
    "goodbye_of",
    "read_hello",
    "read_ready",
    "ready",
    "refused",
]

VERSION = 1
SESSION_BYTES = 16
MAX_CAMERAS = 64
MAX_STATE_DIM = 4096
MAX_NAME = 256
MAX_PATH = 4096
MAX_OBSERVATION_BYTES = 1 << 30
"""Of an observation with its history."""
MAX_CHUNK_BYTES = 16 << 20
MAX_OBS_STEPS = 64
MAX_COMPUTATION_BYTES = 1 << 16


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
        prefix: How many of the robot's own actions the policy wants to be told of.
        computation: How the policy computes; empty: an older server does not say it.
    """

    description: str
    n_obs_steps: int = 1
    resumed: bool = False
    received: int = 0
    prefix: PrefixLimits = NO_PREFIX
    computation: Computation = field(default_factory=dict)


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
    message = native.new_client_message()
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
    message = native.decode_client(data)
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
    observation_bytes = native.step_bytes(spec.features)
    chunk_bytes = 4 * spec.actions_per_chunk * spec.action_dim
    for what, size, most in (
        ("an observation", observation_bytes, MAX_OBSERVATION_BYTES),
        ("a chunk", chunk_bytes, MAX_CHUNK_BYTES),
    ):
        if size > most:
            raise SetupRefusedError(f"{what} would have {size / 1e6:.0f} MB, the server allows {most / 1e6:.0f} MB")


def ready(fields: Ready) -> bytes:
    """The message that `read_ready` reads."""
    message = native.new_server_message()
    message.ready.description = native.sayable(fields.description)
    message.ready.n_obs_steps = fields.n_obs_steps
    message.ready.resumed, message.ready.received = fields.resumed, fields.received
    message.ready.executed_actions, message.ready.committed_actions = fields.prefix.executed, fields.prefix.committed
    message.ready.computation = msgpack.packb(dict(fields.computation)) if fields.computation else b""
    return _bytes_of(message)


def refused(reason: str) -> bytes:
    """There will be no session."""
    message = native.new_server_message()
    message.refused.reason = native.sayable(reason)
    return _bytes_of(message)


def bye(reason: str, is_final: bool) -> bytes:
    """The session is over."""
    message = native.new_server_message()
    message.bye.reason, message.bye.is_final = native.sayable(reason), is_final
    return _bytes_of(message)


def read_ready(message: Any) -> Ready | Bye:
    """The server's answer to a hello.

    Args:
        message: As `native.decode_server` gives it.

    Raises:
        SetupRefusedError: It refused; its reason.
        ProtocolError: Anything else.
    """
    if message.HasField("refused"):
        raise SetupRefusedError(message.refused.reason[: native.MAX_REASON])
    if message.HasField("bye"):
        return goodbye_of(message)
    if not message.HasField("ready"):
        raise ProtocolError("the server sent something else where its answer to the handshake belongs")
    fields = message.ready
    if not 1 <= fields.n_obs_steps <= MAX_OBS_STEPS:
        raise ProtocolError(f"the server's policy looks at {fields.n_obs_steps} observations at once")
    try:
        prefix = PrefixLimits(fields.executed_actions, fields.committed_actions)
    except InvalidMessageError as exc:
        raise ProtocolError(f"the server's policy cannot be: {exc}") from exc
    return Ready(
        *(fields.description[: native.MAX_REASON], fields.n_obs_steps, fields.resumed, fields.received, prefix),
        _computation_of(fields.computation),
    )


def _computation_of(packed: bytes) -> Computation:
    if len(packed) > MAX_COMPUTATION_BYTES:
        raise ProtocolError(f"the server says how its policy computes in {len(packed)} bytes")
    try:
        return checked_computation(msgpack.unpackb(packed)) if packed else {}
    except (ValueError, msgpack.UnpackException) as exc:
        raise ProtocolError(f"the server's policy cannot compute so: {exc}") from exc


def goodbye_of(message: Any) -> Bye:
    """The server's goodbye."""
    return Bye(message.bye.reason[: native.MAX_REASON], message.bye.is_final)


def _bytes_of(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _package_version() -> str:
    try:
        return version("async-delta-inference")
    except PackageNotFoundError:
        return "unknown"
