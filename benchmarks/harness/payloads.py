"""What is sent and what comes back: named sizes, and one's own."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Observation, ObservationFeatures, SessionSpec

__all__ = [
    "CHUNK",
    "PAYLOADS",
    "WIDE_CHUNK",
    "Payload",
    "is_null_checkpoint",
    "parse_payload",
    "width_of_null_checkpoint",
]

CHUNK = (50, 7)
WIDE_CHUNK = (100, 14)
_NULL_CHECKPOINT = "benchmark/null"
"""Begins a name for the hub that nobody resolves: the server's policy is replaced."""

_STATE_DIM = 8
_SMALL_BYTES = 1_000_000


@dataclass(frozen=True)
class Payload:
    """An observation's size and its chunk's.

    Args:
        name: As in the results.
        image_shapes: (height, width, channels) of each camera.
        chunk: (rows, width) of the reply.
    """

    name: str
    image_shapes: tuple[tuple[int, int, int], ...]
    chunk: tuple[int, int] = CHUNK

    @property
    def features(self) -> ObservationFeatures:
        """The schema; LIBERO's names, which say nothing here."""
        names = ("image", *(f"image{number}" for number in range(2, len(self.image_shapes) + 1)))
        return ObservationFeatures(
            tuple(f"state_{number}" for number in range(_STATE_DIM)),
            dict(zip(names, self.image_shapes, strict=False)),
        )

    @property
    def observation_bytes(self) -> int:
        """Images and state."""
        return _STATE_DIM * 4 + sum(h * w * c for h, w, c in self.image_shapes)

    @property
    def chunk_bytes(self) -> int:
        """The actions."""
        return self.chunk[0] * self.chunk[1] * 4

    @property
    def small(self) -> bool:
        """Whether a thousand exchanges of it are affordable."""
        return self.observation_bytes < _SMALL_BYTES

    @property
    def null_checkpoint(self) -> str:
        """Names the null policy of this payload; with the width of an action, which LeRobot's protocol leaves out."""
        return f"{_NULL_CHECKPOINT}-{self.name.replace('/', '-')}-{self.chunk[1]}"

    def spec(self, checkpoint: str = "") -> SessionSpec:
        """What the server is asked for: the null policy, if no checkpoint is named."""
        return SessionSpec("act", checkpoint or self.null_checkpoint, self.chunk[0], self.features, self.chunk[1])

    def observation(self, seed: int = 0) -> Observation:
        """One of random pixels, in memory of its own."""
        random = np.random.default_rng(seed)
        observation = Observation.empty(self.features)
        for image in observation.images.values():
            image[...] = random.integers(0, 256, image.shape, np.uint8)
        observation.state[:] = random.normal(size=_STATE_DIM)
        observation.task = "pick up the alphabet soup and place it in the basket"
        return observation

    def with_chunk(self, chunk: tuple[int, int]) -> Payload:
        """The same observation answered with another chunk; the name says so."""
        return Payload(f"{self.name}/{chunk[0]}x{chunk[1]}", self.image_shapes, chunk)


PAYLOADS = {
    payload.name: payload
    for payload in (
        Payload("state", ()),
        Payload("libero", ((256, 256, 3),) * 2),
        Payload("libero360", ((360, 360, 3),) * 2),
        Payload("metaworld", ((480, 480, 3),)),
        Payload("3x480x640", ((480, 640, 3),) * 3),
        Payload("4x1080x1920", ((1080, 1920, 3),) * 4),
    )
}


def is_null_checkpoint(name: str) -> bool:
    """Whether it is a payload's `Payload.null_checkpoint`."""
    return name.startswith(_NULL_CHECKPOINT)


def width_of_null_checkpoint(name: str) -> int:
    """The width of an action that a `Payload.null_checkpoint` names."""
    return int(name.rpartition("-")[2])


def parse_payload(text: str, cameras: int | None = None) -> Payload:
    """A payload by name, or ``CAMERASxHEIGHTxWIDTH``; ``cameras`` overrides how many.

    Raises:
        ConfigError: Neither.
    """
    payload = PAYLOADS.get(text)
    if payload is None:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
        if match is None:
            raise ConfigError(f"unknown --payload={text}; known are {', '.join(PAYLOADS)}, or CAMERASxHEIGHTxWIDTH")
        count, height, width = map(int, match.groups())
        payload = Payload(text, ((height, width, 3),) * count)
    if cameras is None or cameras == len(payload.image_shapes):
        return payload
    if cameras and not payload.image_shapes:
        raise ConfigError(f"--payload={text} has no camera to repeat: give one as CAMERASxHEIGHTxWIDTH")
    return Payload(f"{text}/{cameras}cameras", payload.image_shapes[:1] * cameras)
