"""Observations of our own service: arrays as bytes in pieces, and back, with a bound on every size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import InvalidMessageError, ProtocolError
from async_delta_inference.transport.grpc import image_codecs, native
from async_delta_inference.transport.messages import Observation, ObservationFeatures, PastObservation

__all__ = ["Assembly", "Packed"]

PIECE_BYTES = 1 << 20
"""Most of an observation's arrays that one message holds: gRPC refuses messages of more than 4 MB."""


@dataclass(slots=True, eq=False)
class Packed:
    """An observation on its way: its scalars and a copy of its arrays.

    Args:
        timestep: See `Observation`.
        episode: The same.
        timestamp_s: The same.
        must_go: The same.
        task: The same.
        arrays: States, then images.
        image_bytes: Of every image, where they are encoded.
        number: Of the observations that were sent; given when it is.
    """

    timestep: int
    episode: int
    timestamp_s: float
    must_go: bool
    task: str
    arrays: bytes
    image_bytes: tuple[int, ...] = ()
    number: int = 0

    @classmethod
    def of(cls, observation: Observation, features: ObservationFeatures, image_encoding: str) -> Packed:
        """A copy: nothing of the caller's is retained."""
        steps = observation.steps()
        images = [step.images[name] for step in steps for name, _ in features.image_shapes]
        states: list[Any] = [step.state.tobytes() for step in steps]
        parts: list[Any] = [np.ascontiguousarray(image) for image in images]
        sizes: tuple[int, ...] = ()
        if image_encoding != "raw":
            parts = [image_codecs.encode(image, image_encoding) for image in images]
            sizes = tuple(len(part) for part in parts)
        return cls(
            observation.timestep,
            observation.episode,
            observation.timestamp_s,
            observation.must_go,
            observation.task,
            b"".join([*states, *parts]),
            sizes,
        )

    def messages(self) -> Iterator[bytes]:
        """What is sent."""
        message = native.new_client_message()
        fields = message.observation
        fields.number, fields.timestep, fields.episode = self.number, self.timestep, self.episode
        fields.timestamp_s, fields.must_go, fields.task = self.timestamp_s, self.must_go, self.task
        fields.image_bytes.extend(self.image_bytes)
        fields.array_bytes = len(self.arrays)
        fields.arrays = self.arrays if len(self.arrays) <= PIECE_BYTES else self.arrays[:PIECE_BYTES]
        yield message.SerializeToString()
        for start in range(PIECE_BYTES, len(self.arrays), PIECE_BYTES):
            message = native.new_client_message()
            message.more = self.arrays[start : start + PIECE_BYTES]
            yield message.SerializeToString()


class Assembly:
    """Puts a session's observations together again.

    Args:
        features: What was agreed.
        n_obs_steps: How many observations one message holds.
        image_encoding: How images come.
    """

    def __init__(self, features: ObservationFeatures, n_obs_steps: int, image_encoding: str) -> None:
        self._features = features
        self._n_obs_steps = n_obs_steps
        self._encoding = image_encoding
        self._shapes = [shape for _, shape in features.image_shapes] * n_obs_steps
        self._raw_bytes = n_obs_steps * native.step_bytes(features)
        self._states_bytes = n_obs_steps * 4 * features.state_dim
        self._fields: Any = None
        self._parts: list[bytes] = []
        self._missing = 0

    def add(self, message: Any) -> tuple[int, Observation] | None:
        """A message of the client's, as `native.decode_client` gives it.

        Returns:
            The number of an observation and itself, once it is whole; its arrays are read-only.

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
        return fields.number, self._observation(fields, parts[0] if len(parts) == 1 else b"".join(parts))

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
        self._fields, self._missing = fields, expected

    def _observation(self, fields: Any, arrays: bytes) -> Observation:
        states = np.frombuffer(arrays, np.float32, self._n_obs_steps * self._features.state_dim)
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
        )
        observation.make_read_only()
        try:
            observation.check_scalars()
        except InvalidMessageError as exc:
            raise ProtocolError(f"the client sent an observation that does not fit: {exc}") from exc
        return observation

    def _images(self, fields: Any, arrays: bytes) -> list[NDArray[np.uint8]]:
        offset = self._states_bytes
        images: list[NDArray[np.uint8]] = []
        for number, shape in enumerate(self._shapes):
            if self._encoding == "raw":
                height, width, channels = shape
                size = height * width * channels
                images.append(np.frombuffer(arrays, np.uint8, size, offset).reshape(shape))
            else:
                size = fields.image_bytes[number]
                images.append(image_codecs.decode(arrays[offset : offset + size], self._encoding, shape))
            offset += size
        return images
