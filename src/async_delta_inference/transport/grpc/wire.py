"""Our messages as the bytes that PolicyServer and RobotClient exchange, and back.

The pickles are the ones that RobotClient makes of LeRobot's own classes, byte for byte (`pickling`). Both
ways of every message stand side by side; reading never unpickles (`unpickling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from async_delta_inference.errors import InvalidMessageError, ProtocolError
from async_delta_inference.transport.grpc.actions import loads_actions
from async_delta_inference.transport.grpc.arrays import ARRAY_NAMES, read_array, read_number
from async_delta_inference.transport.grpc.pickling import dumps_actions, dumps_observation, dumps_policy
from async_delta_inference.transport.grpc.unpickling import Made, Name, PickleReader, refuse_what_cannot_be_read
from async_delta_inference.transport.messages import ActionChunk, Observation, ObservationFeatures, SessionSpec

__all__ = [
    "MAX_POLICY_BYTES",
    "Wanted",
    "decode_actions",
    "decode_observation",
    "decode_policy",
    "encode_actions",
    "encode_observation",
    "encode_policy",
    "longest_observation",
    "raw_observation",
]

ENVIRONMENT_DT_S = 1 / 30
"""Between the timestamps of a chunk's actions: PolicyServer's default. It has a flag for it; nobody reads them."""

MAX_POLICY_BYTES = 1 << 20
"""Upper bound of the payload of ``SendPolicyInstructions``: some ten thousand names."""

_CLIENT = "the client"
_HELPERS = "lerobot.async_inference.helpers"
_POLICY_CONFIG = Name(_HELPERS, "RemotePolicyConfig")
_TIMED_OBSERVATION = Name(_HELPERS, "TimedObservation")
_OBSERVATION_NAMES = frozenset({_TIMED_OBSERVATION, *ARRAY_NAMES})
_IMAGE_PREFIX = "observation.images."


# What a client asks for.


@dataclass(frozen=True)
class Wanted:
    """What LeRobot's ``RemotePolicyConfig`` says: a `SessionSpec` but for the length of an action."""

    policy_type: str
    pretrained_name_or_path: str
    features: ObservationFeatures
    actions_per_chunk: int
    device: str

    def spec(self, action_dim: int) -> SessionSpec:
        """The whole.

        Raises:
            InvalidMessageError: A number is out of its range.
        """
        return SessionSpec(
            self.policy_type,
            self.pretrained_name_or_path,
            self.actions_per_chunk,
            self.features,
            action_dim,
            self.device,
        )


def encode_policy(spec: SessionSpec) -> bytes:
    """The payload of ``SendPolicyInstructions``."""
    return dumps_policy(
        spec.policy_type,
        spec.pretrained_name_or_path,
        spec.features.to_lerobot(),
        spec.actions_per_chunk,
        spec.device,
    )


def decode_policy(data: bytes) -> Wanted:
    """What a client asks for.

    Raises:
        ProtocolError: Not a ``RemotePolicyConfig`` that can be served; the message names the field.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise ProtocolError(f"{_CLIENT} sent {len(data)} bytes where a RemotePolicyConfig belongs")
    config = PickleReader(data, {_POLICY_CONFIG}, _CLIENT, MAX_POLICY_BYTES // 4).load()
    with refuse_what_cannot_be_read(_CLIENT):
        fields = _fields(config, _POLICY_CONFIG)
        if fields.get("rename_map"):
            raise ProtocolError("a rename_map is not understood here: name the cameras as the policy does")
        return Wanted(
            policy_type=_field(fields, "policy_type", str),
            pretrained_name_or_path=_field(fields, "pretrained_name_or_path", str),
            features=_read_features(_field(fields, "lerobot_features", dict)),
            actions_per_chunk=_field(fields, "actions_per_chunk", int),
            device=_field(fields, "device", str),
        )


def _read_features(features: dict[str, Any]) -> ObservationFeatures:
    """`ObservationFeatures` out of LeRobot's dataset features, the counterpart of ``to_lerobot``."""
    names: tuple[str, ...] = ()
    images = {}
    for key, feature in features.items():
        if type(feature) is not dict:
            raise ProtocolError(f"the feature {key[:80]!r} is a {type(feature).__name__}, not a dictionary")
        if key == "observation.state":
            names = _read_state_names(feature)
        elif key.startswith(_IMAGE_PREFIX) and feature.get("dtype") in ("image", "video"):
            images[key.removeprefix(_IMAGE_PREFIX)] = _read_image_shape(key, feature)
        else:
            raise ProtocolError(f"the feature {key[:80]!r} is neither observation.state nor an image")
    try:
        return ObservationFeatures(names, images)
    except InvalidMessageError as exc:
        raise ProtocolError(f"the features cannot be served: {exc}") from exc


def _read_state_names(feature: dict[str, Any]) -> tuple[str, ...]:
    names, shape = feature.get("names"), feature.get("shape")
    if type(names) not in (list, tuple) or not all(type(name) is str for name in names or ()):
        raise ProtocolError("the feature 'observation.state' does not name its elements")
    assert names is not None
    if type(shape) not in (list, tuple) or len(shape or ()) != 1 or _size_of(shape[0]) != len(names):  # type: ignore[index]
        raise ProtocolError("the feature 'observation.state' has another shape than names")
    return tuple(names)


def _read_image_shape(key: str, feature: dict[str, Any]) -> tuple[int, int, int]:
    shape = feature.get("shape")
    if type(shape) not in (list, tuple) or len(shape or ()) != 3:
        raise ProtocolError(f"the feature {key[:80]!r} has no shape of height, width and channels")
    height, width, channels = map(_size_of, shape or ())
    return height, width, channels


def _size_of(size: object) -> int:
    if type(size) is not int or not 1 <= size < 2**20:
        raise ProtocolError("a feature's shape is not made of positive integers")
    return size


# Observations.


def raw_observation(observation: Observation, features: ObservationFeatures) -> dict[str, Any]:
    """The observation as a robot would give it: one Python float per state name, images by camera, the task."""
    raw: dict[str, Any] = dict(zip(features.state_names, observation.state.tolist(), strict=True))
    raw.update(observation.images)
    raw["task"] = observation.task
    return raw


def encode_observation(observation: Observation, features: ObservationFeatures) -> bytes:
    """The payload of ``SendObservations``: a copy, nothing of the caller's is retained."""
    raw = raw_observation(observation, features)
    return dumps_observation(observation.timestamp_s, observation.timestep, raw, observation.must_go)


def longest_observation(features: ObservationFeatures) -> int:
    """Upper bound of the bytes of an observation with these features: its images, and room for all the rest."""
    images = sum(height * width * channels for _, (height, width, channels) in features.image_shapes)
    names = sum(len(name.encode()) for name in (*features.state_names, *features.images))
    return images + names + 256 * (features.state_dim + len(features.images)) + (1 << 16)


def decode_observation(data: bytes, features: ObservationFeatures) -> Observation:
    """An observation whose images are read-only views of ``data``. What the features do not name is left out.

    Raises:
        ProtocolError: Not a ``TimedObservation`` with these features; the message names what does not fit.
    """
    most_operations = 1000 + 32 * features.state_dim + 200 * len(features.images)
    timed = PickleReader(data, _OBSERVATION_NAMES, _CLIENT, most_operations).load()
    with refuse_what_cannot_be_read(_CLIENT):
        fields = _fields(timed, _TIMED_OBSERVATION)
        raw = _field(fields, "observation", dict)
        observation = Observation(
            images={name: read_array(_item(raw, name), f"the image {name!r}") for name in features.images},
            state=_read_state(raw, features),
            timestep=_field(fields, "timestep", int),
            task=_field(raw, "task", str) if "task" in raw else "",
            must_go=_field(fields, "must_go", bool),
            timestamp_s=read_number(_item(fields, "timestamp"), "the timestamp"),
        )
        try:
            observation.check(features)
        except InvalidMessageError as exc:
            raise ProtocolError(f"{_CLIENT} sent an observation that does not fit: {exc}") from exc
        return observation


def _read_state(raw: dict[str, Any], features: ObservationFeatures) -> np.ndarray[Any, np.dtype[np.float32]]:
    numbers = [read_number(_item(raw, name), f"the state {name!r}") for name in features.state_names]
    with np.errstate(over="ignore"):
        state = np.array(numbers, np.float32)
    state.setflags(write=False)
    return state


# Chunks.


def encode_actions(chunk: ActionChunk) -> bytes:
    """A ``GetActions`` reply: timesteps and timestamps count on from those of the observation, as PolicyServer's do."""
    steps = range(len(chunk))
    records = [(chunk.timestamp_s + step * ENVIRONMENT_DT_S, chunk.timestep + step) for step in steps]
    return dumps_actions(records, chunk.actions)


def decode_actions(data: bytes, longest_chunk: int = 1000) -> ActionChunk:
    """A ``GetActions`` reply as a chunk.

    Args:
        data: The reply's bytes.
        longest_chunk: Rows that were agreed; bounds how much is read.

    Raises:
        ProtocolError: Not a list of actions with consecutive timesteps and equal widths.
    """
    records = loads_actions(data, longest_chunk)
    first = records[0].timestep
    if any(record.timestep != first + row for row, record in enumerate(records)):
        raise ProtocolError("the server sent actions whose timesteps are not consecutive")
    if any(record.action.shape != records[0].action.shape for record in records):
        raise ProtocolError("the server sent actions of different widths in one chunk")
    rows = [record.action for record in records]
    memory = bytearray(len(rows) * rows[0].nbytes)
    actions = np.frombuffer(memory, np.float32).reshape(len(rows), -1)
    np.stack(rows, out=actions)
    return ActionChunk(actions, timestep=first, timestamp_s=records[0].timestamp, memory=memory)


# Shared by the above.


def _fields(made: object, function: Name) -> dict[str, Any]:
    """The attributes of a dataclass of LeRobot's."""
    if not isinstance(made, Made) or made.function != function or made.arguments or type(made.state) is not dict:
        raise ProtocolError(f"{_CLIENT} sent something else where a {function.name} belongs")
    return made.state


def _item(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise ProtocolError(f"{_CLIENT} left out {name!r}")
    return fields[name]


def _field[T](fields: dict[str, Any], name: str, kind: type[T]) -> T:
    value = _item(fields, name)
    if type(value) is not kind:
        raise ProtocolError(f"{name!r} must be of type {kind.__name__}, {_CLIENT} sent a {type(value).__name__}")
    return value
