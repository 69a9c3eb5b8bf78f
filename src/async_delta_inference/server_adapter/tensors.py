"""Slots to tensors, as lerobot-eval makes them of what an environment observes, without its detours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference.transport.messages import Observation, PastObservation

__all__ = ["Preparation", "accept_read_only_memory", "state_and_task"]

_WHITE = np.float32(255)


class Preparation:
    """Makes the policy's input of what was observed at one step. Images keep their size.

    Args:
        cameras: The session's cameras, and what the policy calls their images.
        vectors: What the policy calls parts of the session's state, and where they are in it.
        tables: From `image_tables`: of these images the preprocessor's work is done here, too.
        is_forgetful: Whether the policy keeps nothing of an image that it was given: an image that goes straight to it
            is written where the last one was, a quarter faster than into memory that the caches do not know. An image
            that the preprocessor is given always has memory of its own, since a step may keep it.
    """

    makes_new_memory = False
    """Whether what a call gave stays as it is after the next one, which then need not be copied."""

    def __init__(
        self,
        cameras: Mapping[str, str],
        vectors: Mapping[str, slice],
        tables: Mapping[str, NDArray[np.float32]],
        *,
        is_forgetful: bool,
    ) -> None:
        self._cameras = cameras
        self._vectors = vectors
        self._tables = tables
        self._planes: dict[tuple[int, ...], NDArray[np.uint8]] = {}
        self._is_forgetful = is_forgetful
        self._results: dict[str, NDArray[np.float32]] = {}
        accept_read_only_memory()

    def __call__(
        self, seen: Observation | PastObservation, task: str
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Tensors that share no memory with ``seen``; for a forgetful policy they are valid until the next call.

        Returns:
            What the preprocessor is to be given: vectors (1, S), the task in a list, and images (1, C, H, W) in [0, 1],
            float32; and the images that it would only have normalised and that are normalised already, by the same
            keys.
        """
        batch = state_and_task(seen.state, self._vectors, task)
        finished: dict[str, torch.Tensor] = {}
        for name, image in seen.images.items():
            key = self._cameras[name]
            planes = self._tear_apart(image)
            if (table := self._tables.get(key)) is not None:
                result = self._memory_to_look_up_into(key, planes.shape)
                for plane, levels, target in zip(planes, table, result[0], strict=True):
                    cv2.LUT(plane, levels, target)
                finished[key] = torch.from_numpy(result)
            else:
                # The quotient itself: a product with 1 / 255 differs in the last bit.
                batch[key] = torch.from_numpy(np.divide(planes, _WHITE)[None])
        return batch, finished

    def _tear_apart(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, C) to (C, H, W); valid until the next call."""
        height, width, channels = image.shape
        planes = self._planes.get(image.shape)
        if planes is None:
            planes = self._planes[image.shape] = np.empty((channels, height, width), np.uint8)
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


def state_and_task(state: NDArray[np.float32], vectors: Mapping[str, slice], task: str) -> dict[str, Any]:
    """What the preprocessor is given besides images, sharing no memory with ``state``.

    Args:
        state: float32 (S,).
        vectors: What the policy calls parts of it, and where they are in it.
        task: The instruction.

    Returns:
        float32 (1, n) by key, and the task in a list.
    """
    row = state.reshape(1, -1)
    batch: dict[str, Any] = {key: torch.from_numpy(row[:, part].copy()) for key, part in vectors.items()}
    batch["task"] = [task]
    return batch


def accept_read_only_memory() -> None:
    """Have torch say now, to nobody, what it says once a process of memory that it may not write to: a slot's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_only = np.zeros(1, np.uint8)
        read_only.setflags(write=False)
        torch.from_numpy(read_only)
