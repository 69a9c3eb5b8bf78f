"""`DevicePreparation`: frames travel as bytes, and become what the policy sees where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from async_delta_inference.server_adapter.image_tables import look_up
from async_delta_inference.server_adapter.tensors import accept_read_only_memory, state_and_task
from async_delta_inference.transport.messages import Observation, PastObservation

__all__ = ["DevicePreparation"]


class DevicePreparation:
    """As `Preparation`, for a policy on another device. Images keep their size.

    A frame is a quarter of what its floats would be. The copies are asynchronous where the frames lie in pinned memory,
    which must not be written to before they have ended; out of other memory they have ended when the call returns.

    Args:
        cameras: The session's cameras, and what the policy calls their images.
        vectors: What the policy calls parts of the session's state, and where they are in it.
        tables: From `image_tables`, of all images, on the policy's device.
    """

    makes_new_memory = True

    def __init__(
        self, cameras: Mapping[str, str], vectors: Mapping[str, slice], tables: Mapping[str, torch.Tensor]
    ) -> None:
        self._cameras = cameras
        self._vectors = vectors
        self._tables = tables
        accept_read_only_memory()

    def __call__(
        self, seen: Observation | PastObservation, task: str
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """See `Preparation`. The vectors are on the CPU, the images on the policy's device."""
        finished: dict[str, torch.Tensor] = {}
        for name, image in seen.images.items():
            key = self._cameras[name]
            table = self._tables[key]
            finished[key] = look_up(torch.from_numpy(image).to(table.device, non_blocking=True), table)
        return state_and_task(seen.state, self._vectors, task), finished
