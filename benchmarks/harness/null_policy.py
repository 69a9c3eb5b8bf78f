"""A policy that costs nothing: a constant chunk, marked with what was observed so that every reply can be checked."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport import ActionChunk, Observation, SessionSpec

__all__ = ["NullHandler", "NullPolicy", "check_reply", "constant_chunk", "mark_observation"]

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


class NullHandler:
    """The transport alone: answers an endpoint with nothing of lerobot's in between."""

    def set_up(self, policy: SessionSpec) -> None:
        """Prepare the chunk."""
        self._actions = constant_chunk((policy.actions_per_chunk, policy.action_dim))
        self._actions[0, 1] = -1.0
        self._camera = next(reversed(policy.features.images), None)

    def infer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32]:
        """The chunk, marked as the observation is."""
        actions = self._actions
        actions[0, 0] = observation.state[0]
        if self._camera is not None:
            actions[0, 1] = observation.images[self._camera][-1, -1, -1]
        return actions


class NullPolicy:
    """What PolicyServer asks of a policy and its processors, answered at once. The server around it stays as it is.

    Args:
        policy: Whose observations it is to take.
    """

    def __init__(self, policy: SessionSpec) -> None:
        import torch
        from lerobot.configs import FeatureType, PolicyFeature

        images = {
            f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (c, h, w))
            for name, (h, w, c) in policy.features.images.items()
        }
        self.config = SimpleNamespace(image_features=images)
        self._camera = next(reversed(images), None)
        self.chunk_shape = (policy.actions_per_chunk, policy.action_dim)
        self._actions = torch.from_numpy(constant_chunk(self.chunk_shape))[None]
        self._actions[0, 0, 1] = -1.0

    def to(self, device: str) -> NullPolicy:
        """Nowhere to go."""
        return self

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_action_chunk(self, batch: dict[str, Any]) -> Any:
        """float32 (1, n, A), marked as the observation is."""
        self._actions[0, 0, 0] = batch["observation.state"][0, 0]
        if self._camera is not None:
            self._actions[0, 0, 1] = (batch[self._camera][0, -1, -1, -1] * 255).round()
        return self._actions


def install_null_policy(policy_server: ModuleType) -> None:
    """Have ``lerobot.async_inference.policy_server`` load a `NullPolicy` for `NULL_CHECKPOINT` and identity processors
    with it, and whatever it is told for any other name.
    """
    from harness.payloads import NULL_CHECKPOINT

    load_class, make_processors = policy_server.get_policy_class, policy_server.make_pre_post_processors

    def get_policy_class(policy_type: str) -> Any:
        real = load_class(policy_type)

        def from_pretrained(name: str, **kwargs: Any) -> Any:
            return NullPolicy(_expected[0]) if name == NULL_CHECKPOINT else real.from_pretrained(name, **kwargs)

        return SimpleNamespace(from_pretrained=from_pretrained)

    def make_pre_post_processors(config: Any, pretrained_path: str, **kwargs: Any) -> Any:
        if pretrained_path == NULL_CHECKPOINT:
            return (lambda batch: batch), (lambda action: action)
        return make_processors(config, pretrained_path=pretrained_path, **kwargs)

    policy_server.get_policy_class = get_policy_class  # type: ignore[attr-defined]
    policy_server.make_pre_post_processors = make_pre_post_processors  # type: ignore[attr-defined]


_expected: list[SessionSpec] = []


def expect(policy: SessionSpec) -> None:
    """Tell this process's server which `SessionSpec` the next null policy is for: not all of it is on gRPC's wire."""
    _expected[:] = [policy]
