"""What a policy's preprocessor makes of every byte of an image, looked up instead of computed.

PolicyServer turns a byte into a float, divides it by 255, and LeRobot's normaliser then takes a mean off and divides by
a deviation: four passes over each image. A byte has 256 values, so all of that is a table of 256 floats a channel. The
table is made by the preprocessor itself and hence holds its very bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["PIXELWISE_STEPS", "image_tables"]

PIXELWISE_STEPS = frozenset(
    {
        "AddBatchDimensionProcessorStep",
        "DeviceProcessorStep",
        "NewLineTaskProcessorStep",
        "NormalizerProcessorStep",
        "RenameObservationsProcessorStep",
        "TokenizerProcessorStep",
    }
)
"""Steps of a preprocessor without state that treat a pixel by its value and channel alone, or no pixel at all."""

_LEVELS = 256


def image_tables(
    preprocessor: Callable[[dict[str, Any]], dict[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    rest: Mapping[str, Any],
) -> dict[str, NDArray[np.float32]]:
    """The tables that may stand in for the preprocessor's work on images.

    Args:
        preprocessor: LeRobot's pipeline.
        shapes: (channels, height, width) of the policy's images, by LeRobot key.
        rest: What else the preprocessor is given with an observation: the state and the task.

    Returns:
        float32 (channels, 256) by key, for every image of ``shapes``; empty where the pipeline has other steps, or does
        with any pixel of a whole image something else than its table says.
    """
    steps = {type(step).__name__ for step in getattr(preprocessor, "steps", [None])}
    if not steps <= PIXELWISE_STEPS or any(height * width < _LEVELS for _, height, width in shapes.values()):
        return {}
    probes = {key: _every_level(shape) for key, shape in shapes.items()}
    batch = preprocessor({**rest, **{key: torch.from_numpy(_as_prepared(probe)) for key, probe in probes.items()}})
    tables = {}
    for key, probe in probes.items():
        image = batch.get(key)
        if not isinstance(image, torch.Tensor) or image.device.type != "cpu" or image.dtype != torch.float32:
            return {}
        values = image.numpy()
        if values.shape != (1, *probe.shape):
            return {}
        table = np.ascontiguousarray(values.reshape(len(probe), -1)[:, :_LEVELS])
        expected = np.stack([levels[plane] for levels, plane in zip(table, probe, strict=True)])
        if values.tobytes() != expected.tobytes():
            return {}
        tables[key] = table
    return tables


def _every_level(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 of the shape (channels, height, width): each channel counts from 0 to 255, over and over."""
    channels, height, width = shape
    plane = np.resize(np.arange(_LEVELS, dtype=np.uint8), (height, width))
    return np.repeat(plane[None], channels, axis=0)


def _as_prepared(planes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(planes, np.float32(255))[None]
