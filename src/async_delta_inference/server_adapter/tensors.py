"""Slots to tensors: what PolicyServer does before its preprocessor, without what it does for nothing.

Bit-equal to the functions named in `lerobot_internals.REPLACED`, whose text is compared with the tested one when a host
starts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference.transport.messages import Observation

__all__ = ["Preparation"]

_STATE_KEY = "observation.state"
_IMAGE_PREFIX = "observation.images."
_WHITE = np.float32(255)


class Preparation:
    """Makes the policy's input of an observation.

    Args:
        shapes: Of the policy's images, (channels, height, width), by LeRobot key.
        resize: LeRobot's own, for an image of another shape than the policy's.
        tables: From `image_tables`: of these images the preprocessor's work is done here, too.
        is_forgetful: Whether the policy keeps nothing of an image that it was given: an image that goes straight to it
            is written where the last one was, a quarter faster than into memory that the caches do not know. An image
            that the preprocessor is given always has memory of its own, since a step may keep it.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        resize: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor],
        tables: Mapping[str, NDArray[np.float32]],
        *,
        is_forgetful: bool,
    ) -> None:
        self._shapes = shapes
        self._resize = resize
        self._tables = tables
        self._planes: dict[tuple[int, ...], NDArray[np.uint8]] = {}
        self._is_forgetful = is_forgetful
        self._results: dict[str, NDArray[np.float32]] = {}
        with warnings.catch_warnings():
            # torch warns once per process of memory that it may not write to; nothing here writes to a slot.
            warnings.simplefilter("ignore")
            read_only = np.zeros(1, np.uint8)
            read_only.setflags(write=False)
            torch.from_numpy(read_only)

    def __call__(self, observation: Observation) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Tensors that share no memory with the observation; for a forgetful policy they are valid until the next call.

        Returns:
            What the preprocessor is to be given: state (1, S), task, and images (1, C, H, W) in [0, 1], float32; and
            the images that it would only have normalised and that are normalised already, by the same keys.
        """
        batch: dict[str, Any] = {
            _STATE_KEY: torch.from_numpy(observation.state.reshape(1, -1).copy()),
            "task": observation.task,
        }
        finished: dict[str, torch.Tensor] = {}
        for name, image in observation.images.items():
            key = _IMAGE_PREFIX + name
            planes = self._tear_apart(image, self._shapes[key])
            if (table := self._tables.get(key)) is not None:
                result = self._memory_to_look_up_into(key, planes.shape)
                for plane, levels, target in zip(planes, table, result[0], strict=True):
                    cv2.LUT(plane, levels, target)
                finished[key] = torch.from_numpy(result)
            else:
                # The quotient itself: a product with 1 / 255 differs in the last bit.
                batch[key] = torch.from_numpy(np.divide(planes, _WHITE)[None])
        return batch, finished

    def _tear_apart(self, image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """(H, W, C) to (C, H, W) of the policy's size; valid until the next call."""
        height, width, channels = image.shape
        if shape[1:] != (height, width):
            return self._resize(torch.from_numpy(image), shape).numpy()
        planes = self._planes.get(shape)
        if planes is None:
            planes = self._planes[shape] = np.empty((channels, height, width), np.uint8)
        # Tearing the channels apart as bytes, then converting what is contiguous, takes two thirds of the time that one
        # transposing pass takes.
        cv2.split(image, list(planes))
        return planes

    def _memory_to_look_up_into(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        result = self._results.get(key)
        if result is None:
            result = np.empty((1, *shape), np.float32)
            if self._is_forgetful:
                self._results[key] = result
        return result
