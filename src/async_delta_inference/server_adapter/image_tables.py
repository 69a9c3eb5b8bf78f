"""What a policy's preprocessor makes of every byte of an image, looked up instead of computed.

PolicyServer turns a byte into a float, divides it by 255, and LeRobot's normaliser then takes a mean off and divides by
a deviation: four passes over each image. A byte has 256 values, so all of that is a table of 256 floats a channel. The
table is made by the preprocessor itself, on the device where it leaves its images, and hence holds its very bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["PIXELWISE_STEPS", "image_tables", "look_up"]

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
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


def image_tables(
    preprocessor: Callable[[dict[str, Any]], dict[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    rest: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """The tables that may stand in for the preprocessor's work on images.

    Args:
        preprocessor: LeRobot's pipeline.
        shapes: (channels, height, width) of the policy's images, by LeRobot key.
        rest: What else the preprocessor is given with an observation: the state and the task.
        device: The policy's.

    Returns:
        (channels, 256) by key, for every image of ``shapes``, on ``device``, of the type that the preprocessor gives:
        float32 on the CPU. Empty where the pipeline has other steps, or does with any pixel of a whole image something
        else than its table says.
    """
    steps = {type(step).__name__ for step in getattr(preprocessor, "steps", [None])}
    if not steps <= PIXELWISE_STEPS or any(height * width < _LEVELS for _, height, width in shapes.values()):
        return {}
    probes = {key: _every_level(shape) for key, shape in shapes.items()}
    batch = preprocessor({**rest, **{key: torch.from_numpy(_as_prepared(probe)) for key, probe in probes.items()}})
    tables = {}
    for key, probe in probes.items():
        table = _table_of(batch.get(key), probe, torch.device(device))
        if table is None:
            return {}
        tables[key] = table
    return tables


def look_up(frame: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """A frame as the preprocessor would make it, on the device of both.

    Args:
        frame: uint8 (H, W, C).
        table: From `image_tables`.

    Returns:
        (1, C, H, W), in memory of its own.
    """
    height, width, channels = frame.shape
    levels = frame.permute(2, 0, 1).to(torch.int64, memory_format=torch.contiguous_format)
    return table.gather(1, levels.view(channels, -1)).view(1, channels, height, width)


def _table_of(image: Any, probe: NDArray[np.uint8], device: torch.device) -> torch.Tensor | None:
    """The table of one image, from what the pipeline made of a probe; None where there is none."""
    if not isinstance(image, torch.Tensor) or image.device.type != device.type or image.dtype not in _FLOATS:
        return None
    if image.shape != (1, *probe.shape) or (image.is_cpu and image.dtype is not torch.float32):
        return None
    table = image.reshape(len(probe), -1)[:, :_LEVELS].contiguous()
    frame = torch.from_numpy(np.ascontiguousarray(probe.transpose(1, 2, 0))).to(image.device)
    return table if _same_bits(look_up(frame, table), image.contiguous()) else None


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _every_level(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 of the shape (channels, height, width): each channel counts from 0 to 255, over and over."""
    channels, height, width = shape
    plane = np.resize(np.arange(_LEVELS, dtype=np.uint8), (height, width))
    return np.repeat(plane[None], channels, axis=0)


def _as_prepared(planes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(planes, np.float32(255))[None]
