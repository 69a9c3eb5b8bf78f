"""`Declared`: what an environment said that it observes. Whatever it gives is compared with that, never stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from async_delta_inference.client.environments.observation import camera_images, state_parts
from async_delta_inference.client.environments.picture import as_picture
from async_delta_inference.errors import ConfigError, EpisodeError

__all__ = ["Declared", "example_of"]

_Kind = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class Declared:
    """Shapes and dtypes of an observation in LeRobot's layout.

    Args:
        images: Of each camera.
        state: Of each part of the state.
    """

    images: dict[str, _Kind]
    state: dict[str, _Kind]

    @classmethod
    def by(cls, example: Mapping[str, Any], name: str) -> Declared:
        """What an example of an observation says.

        Raises:
            ConfigError: It has no cameras or no state, or one that cannot be served.
        """
        images = camera_images(example)
        for camera, image in images.items():
            try:
                as_picture(image)
            except ValueError as exc:
                raise ConfigError(f"{name} declares the camera {camera!r} {exc}") from exc
        parts = {part: np.asarray(value) for part, value in state_parts(example).items()}
        for part, value in parts.items():
            if value.dtype.kind not in "biuf":
                raise ConfigError(f"{name} declares a state of {value.dtype} under {part!r}; needed are numbers")
        return cls(
            {camera: (image.shape, image.dtype) for camera, image in images.items()},
            {part: (value.shape, value.dtype) for part, value in parts.items()},
        )

    def check(self, observation: Mapping[str, Any], name: str, *, frames: bool) -> None:
        """Compare an observation with it.

        Args:
            observation: In LeRobot's layout.
            name: Of the environment, for messages.
            frames: Whether its images are real ones; else only the state is looked at.

        Raises:
            EpisodeError: A shape or dtype differs, a part is missing or too many, or a number is not finite.
        """
        if frames:
            self._check_images(observation, name)
        try:
            parts = {part: np.asarray(value) for part, value in state_parts(observation).items()}
        except (ConfigError, KeyError, TypeError, ValueError) as exc:
            raise EpisodeError(f"{name} gave no state like the one that it declared: {exc}") from exc
        for part, (shape, dtype) in self.state.items():
            given = parts.get(part)
            if given is None or given.shape != shape or given.dtype.kind not in "biuf":
                got = "none" if given is None else _kind(given.shape, given.dtype)
                raise EpisodeError(f"{name} gave a state {part!r} of {got}; it declared {_kind(shape, dtype)}")
            if not np.all(np.isfinite(given)):
                raise EpisodeError(f"{name} gave a state {part!r} with numbers that are not finite: {given}")

    def _check_images(self, observation: Mapping[str, Any], name: str) -> None:
        try:
            images = camera_images(observation)
        except ConfigError as exc:
            raise EpisodeError(f"{name}: {exc}") from exc
        if images.keys() != self.images.keys():
            raise EpisodeError(f"{name} gave the cameras {sorted(images)}; it declared {sorted(self.images)}")
        for camera, (shape, dtype) in self.images.items():
            given = images[camera]
            if (given.shape, given.dtype) != (shape, dtype):
                raise EpisodeError(
                    f"{name} gave a frame of {_kind(given.shape, given.dtype)} from the camera {camera!r}; it declared "
                    f"{_kind(shape, dtype)}"
                )


def example_of(space: Any) -> Any:
    """The largest observation of a gymnasium space, 0 where there is no largest: its shapes, dtypes and keys."""
    from gymnasium.spaces import Box, Dict

    if isinstance(space, Dict):
        return {key: example_of(inner) for key, inner in space.items()}
    if isinstance(space, Box):
        # A bound of a float's largest value overflows where it is converted.
        bounded = np.isfinite(space.high) & (np.abs(space.high.astype(np.float64)) < 1e6)
        return np.where(bounded, space.high, 0).astype(space.dtype)
    return np.zeros(space.shape, space.dtype) if space.shape is not None else space.sample()


def _kind(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype} {shape}"
