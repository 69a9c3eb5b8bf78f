"""Observations of our own service: arrays as bytes in pieces, and back, with a bound on every size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import InvalidMessageError, ProtocolError
from async_delta_inference.transport.action_prefix import NO_PREFIX, ActionPrefix, PrefixLimits
from async_delta_inference.transport.grpc import image_codecs, native
from async_delta_inference.transport.messages import Observation, ObservationFeatures, PastObservation

__all__ = ["Assembly", "Packed", "Whole"]

PIECE_BYTES = 1 << 20
"""Most of an observation's arrays that one message holds: gRPC refuses messages of more than 4 MB."""


@dataclass(slots=True, eq=False)
class Packed:
    """An observation on its way.

    Args:
        number: Of those that were sent.
        timestep: Its own.
        must_go: Whether it must be answered.
        messages: What is sent.
    """

    number: int
    timestep: int
    must_go: bool
    messages: list[bytes]

    @classmethod
    def of(
        cls,
        observation: Observation,
        features: ObservationFeatures,
        image_encoding: str,
        number: int,
        must_go: bool,
        received: int = 0,
    ) -> Packed:
        """A copy: nothing of the caller's is retained. ``received`` tells the server which replies have arrived."""
        fields = native.new_observation()
        fields.received = received
        fields.number, fields.timestep, fields.episode = number, observation.timestep, observation.episode
        fields.timestamp_s, fields.must_go, fields.task = observation.timestamp_s, must_go, observation.task
        if observation.inference_delay is not None:
            fields.delay = observation.inference_delay + 1
        if observation.prefix is not None:
            fields.executed_rows = len(observation.prefix.executed)
            fields.prefix = observation.prefix.rows().tobytes()
        steps = observation.steps()
        states: list[Any] = [step.state for step in steps]
        images: list[Any] = [step.images[name] for step in steps for name, _ in features.image_shapes]
        if image_encoding != "raw":
            images = [image_codecs.encode(image, image_encoding) for image in images]
            fields.image_bytes.extend(map(len, images))
        arrays = [np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array for array in states + images]
        fields.array_bytes = sum(memoryview(array).nbytes for array in arrays)
        return cls(number, observation.timestep, must_go, _messages(fields, arrays))


def _messages(fields: Any, arrays: list[Any]) -> list[bytes]:
    size = fields.array_bytes
    if size <= PIECE_BYTES:
        return [native.join_observation(fields, arrays, size)]
    whole = memoryview(b"".join(arrays))
    messages = [native.join_observation(fields, [whole[:PIECE_BYTES]], PIECE_BYTES)]
    for start in range(PIECE_BYTES, size, PIECE_BYTES):
        message = native.new_client_message()
        message.more = bytes(whole[start : start + PIECE_BYTES])
        messages.append(message.SerializeToString())
    return messages


class Whole(NamedTuple):
    """An observation that arrived.

    Args:
        number: Of those that the client sent.
        received: Replies that the client has.
        observation: Its arrays are read-only.
    """

    number: int
    received: int
    observation: Observation


class Assembly:
    """Puts a session's observations together again.

    Args:
        features: What was agreed.
        n_obs_steps: How many observations one message holds.
        image_encoding: How images come.
        prefix: Most of the robot's own actions that one message holds.
        action_dim: Length of an action.
    """

    def __init__(
        self,
        features: ObservationFeatures,
        n_obs_steps: int,
        image_encoding: str,
        prefix: PrefixLimits | None = None,
        action_dim: int = 1,
    ) -> None:
        self._features = features
        self._n_obs_steps = n_obs_steps
        self._encoding = image_encoding
        self._prefix = prefix or NO_PREFIX
        self._row_bytes = 4 * action_dim
        self._shapes = [shape for _, shape in features.image_shapes] * n_obs_steps
        self._raw_bytes = n_obs_steps * native.step_bytes(features)
        self._states_bytes = n_obs_steps * 4 * features.state_dim
        self._fields: Any = None
        self._parts: list[bytes] = []
        self._missing = 0

    def add_whole(self, data: bytes) -> Whole | None:
        """A message of the client's, if it is an observation in one piece, of raw images: the short way.

        Raises:
            ProtocolError: It is not what was agreed.
        """
        if self._encoding != "raw" or self._fields is not None:
            return None
        split = native.split_observation(data, self._raw_bytes)
        if split is None:
            return None
        fields, arrays = split
        self._begin(fields)
        self._fields = None
        return Whole(fields.number, fields.received, self._observation(fields, arrays))

    def add(self, message: Any) -> Whole | None:
        """A message of the client's, as `native.decode_client` gives it.

        Returns:
            An observation, once it is whole; its arrays are read-only.

        Raises:
            ProtocolError: It is not what was agreed.
        """
        if message.HasField("observation"):
            self._begin(message.observation)
            piece = message.observation.arrays
        elif message.more and self._fields is not None:
            piece = message.more
        else:
            raise ProtocolError("the client sent something else where an observation belongs")
        if len(piece) > self._missing:
            raise ProtocolError("the client sent more of an observation than it said")
        self._parts.append(piece)
        self._missing -= len(piece)
        if self._missing:
            return None
        fields, self._fields = self._fields, None
        parts, self._parts = self._parts, []
        arrays = parts[0] if len(parts) == 1 else b"".join(parts)
        return Whole(fields.number, fields.received, self._observation(fields, arrays))

    def _begin(self, fields: Any) -> None:
        if self._fields is not None:
            raise ProtocolError("the client began an observation before the last one was whole")
        sizes = list(fields.image_bytes)
        if self._encoding == "raw":
            expected, fits = self._raw_bytes, not sizes
        else:
            expected = self._states_bytes + sum(sizes)
            fits = len(sizes) == len(self._shapes) and all(
                0 < size <= image_codecs.most_bytes(shape) for size, shape in zip(sizes, self._shapes, strict=True)
            )
        if not fits or fields.array_bytes != expected:
            raise ProtocolError(
                f"the client sent an observation of {fields.array_bytes} bytes; agreed were {self._raw_bytes} "
                f"({self._encoding})"
            )
        self._check_prefix(fields)
        self._fields, self._missing = fields, expected

    def _observation(self, fields: Any, arrays: bytes | memoryview) -> Observation:
        # A copy: it may lie at any address.
        states = np.frombuffer(arrays[: self._states_bytes], np.float32).copy()
        names = [name for name, _ in self._features.image_shapes]
        images = self._images(fields, arrays)
        *history, newest = (
            PastObservation(dict(zip(names, images[step * len(names) :], strict=False)), state)
            for step, state in enumerate(states.reshape(self._n_obs_steps, -1))
        )
        observation = Observation(
            newest.images,
            newest.state,
            fields.timestep,
            fields.task,
            fields.must_go,
            fields.episode,
            fields.timestamp_s,
            tuple(history),
            fields.delay - 1 if fields.delay else None,
            self._prefix_of(fields),
        )
        observation.make_read_only()
        try:
            observation.check_scalars()
        except InvalidMessageError as exc:
            raise ProtocolError(f"the client sent an observation that does not fit: {exc}") from exc
        return observation

    def _prefix_of(self, fields: Any) -> ActionPrefix | None:
        """The robot's own actions, whose number was looked at; None where none were agreed."""
        if not self._prefix:
            return None
        # A copy: it may lie at any address.
        rows = np.frombuffer(fields.prefix, np.float32).copy().reshape(-1, self._row_bytes // 4)
        return ActionPrefix.of_rows(rows, fields.executed_rows)

    def _check_prefix(self, fields: Any) -> None:
        rows, rest = divmod(len(fields.prefix), self._row_bytes)
        executed = fields.executed_rows
        if rest or executed > min(rows, self._prefix.executed) or rows - executed > self._prefix.committed:
            raise ProtocolError(
                f"the client sent {len(fields.prefix)} bytes of actions, {executed} of them executed; agreed were at "
                f"most {self._prefix.executed} executed ones and {self._prefix.committed} others of {self._row_bytes} "
                "bytes"
            )

    def _images(self, fields: Any, arrays: bytes | memoryview) -> list[NDArray[np.uint8]]:
        offset = self._states_bytes
        images: list[NDArray[np.uint8]] = []
        for number, shape in enumerate(self._shapes):
            if self._encoding == "raw":
                height, width, channels = shape
                size = height * width * channels
                images.append(np.frombuffer(arrays, np.uint8, size, offset).reshape(shape))
            else:
                size = fields.image_bytes[number]
                images.append(image_codecs.decode(bytes(arrays[offset : offset + size]), self._encoding, shape))
            offset += size
        return images
