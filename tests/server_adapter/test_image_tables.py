"""A table stands in for a preprocessor's work on images only where it does just that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from async_delta_inference.server_adapter.image_tables import image_tables


class Pipeline:
    """A preprocessor of one step, whose name is all that is looked at before it runs."""

    def __init__(self, step_name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.steps = (type(step_name, (), {})(),)
        self._change = change

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {key: self._change(value) if key == "image" else value for key, value in batch.items()}


def scale(image: torch.Tensor) -> torch.Tensor:
    return (image - 0.4) / 0.3


def blur_along_rows(image: torch.Tensor) -> torch.Tensor:
    return torch.cumsum(image, dim=-1)


def darken_one_corner(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([image[..., :-1, :], image[..., -1:, :] * 0.5], dim=-2)


@pytest.mark.parametrize(
    ("step_name", "change", "shape", "has_table"),
    [
        ("NormalizerProcessorStep", scale, (3, 40, 50), True),
        ("SomeOtherStep", scale, (3, 40, 50), False),
        ("NormalizerProcessorStep", blur_along_rows, (3, 40, 50), False),
        ("NormalizerProcessorStep", darken_one_corner, (3, 40, 50), False),
        ("NormalizerProcessorStep", torch.Tensor.double, (3, 40, 50), False),
        ("NormalizerProcessorStep", lambda image: image[:, :2], (3, 40, 50), False),
        ("NormalizerProcessorStep", scale, (3, 4, 5), False),  # too small to show every value
    ],
)
def test_table_stands_in_only_for_what_looks_at_single_pixels(
    step_name: str, change: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], has_table: bool
) -> None:
    tables = image_tables(Pipeline(step_name, change), {"image": shape}, {"task": ""})
    assert set(tables) == ({"image"} if has_table else set())
    if has_table:
        levels = torch.arange(256, dtype=torch.float32) / 255
        assert all(torch.equal(channel, scale(levels)) for channel in tables["image"])
