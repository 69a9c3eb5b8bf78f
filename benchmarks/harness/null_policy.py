"""A policy that costs nothing: a constant chunk, marked with what was observed so that every reply can be checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport import ActionChunk, EpisodeStart, Observation, PolicyNeeds, Request, SessionSpec

__all__ = ["NullPolicy", "NullSession", "check_reply", "constant_chunk", "mark_observation"]

_MARKS = 1 << 20


def constant_chunk(shape: tuple[int, int]) -> NDArray[np.float32]:
    """What every reply holds, but for its first row."""
    return np.linspace(-1.0, 1.0, shape[0] * shape[1], dtype=np.float32).reshape(shape)


def mark_observation(observation: Observation, number: int) -> None:
    """Make the observation tell which one it is: in its first state element, and in the last pixel of every image."""
    observation.timestep = number
    observation.state[0] = number % _MARKS
    for image in observation.images.values():
        image[-1, -1, -1] = number % 256


def check_reply(chunk: ActionChunk | None, number: int, expected: NDArray[np.float32]) -> None:
    """Refuse a reply that is not the one to observation ``number``.

    Raises:
        ProtocolError: Saying what is wrong.
    """
    if chunk is None or chunk.timestep != number:
        raise ProtocolError(f"observation {number} was answered with {chunk}")
    if chunk.actions[0, 0] != number % _MARKS or chunk.actions[0, 1] not in (number % 256, -1.0):
        raise ProtocolError(f"the reply to observation {number} is marked {chunk.actions[0, :2]}")
    if not np.array_equal(chunk.actions[1:], expected[1:]):
        raise ProtocolError(f"the reply to observation {number} holds other actions than were sent")


class NullPolicy:
    """The transport alone: answers every session with nothing of lerobot's in between."""

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """It takes anything."""
        return PolicyNeeds("the null policy")

    def open(self, spec: SessionSpec) -> NullSession:
        """A session with a chunk of its own."""
        return NullSession(spec)

    def infer(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """Each session's chunk, marked as its observation is."""
        if len(requests) == 1:  # The path that is measured to a tenth of a microsecond.
            return [requests[0].session.answer(requests[0].observation)]  # type: ignore[attr-defined]
        return [request.session.answer(request.observation) for request in requests]  # type: ignore[attr-defined]


class NullSession:
    """One client's chunk.

    Args:
        spec: What the client asked for.
    """

    def __init__(self, spec: SessionSpec) -> None:
        self._actions = constant_chunk((spec.actions_per_chunk, spec.action_dim))
        self._actions[0, 1] = -1.0
        self._camera = next(reversed(spec.features.images), None)

    def answer(self, observation: Observation) -> NDArray[np.float32]:
        """The chunk, marked as the observation is."""
        actions = self._actions
        actions[0, 0] = observation.state[0]
        if self._camera is not None:
            actions[0, 1] = observation.images[self._camera][-1, -1, -1]
        return actions

    def reset(self, episode: EpisodeStart) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""
