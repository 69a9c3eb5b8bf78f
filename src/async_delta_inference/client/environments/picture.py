"""Pictures as they come, grey, RGB or with transparency, in bytes or in floats, as uint8 (H, W, 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_picture"]


def as_picture(image: Any) -> NDArray[np.uint8]:
    """A picture in three channels of bytes; the same array where it is that already.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, or floats from 0 to 1. Grey becomes three equal
            channels, transparency is left out.

    Raises:
        ValueError: It is none of these; says what it is.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"a {type(image).__name__}; needed is an array (height, width, channels)")
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        raise ValueError(f"channels first, {image.shape}; needed is (height, width, channels)")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ValueError(f"of shape {image.shape}; needed is (height, width, channels) with 1, 3 or 4 channels")
    bytes_ = _in_bytes(image)
    if image.ndim == 2:
        bytes_ = bytes_[..., np.newaxis]
    channels = bytes_.shape[2]
    return bytes_ if channels == 3 else np.repeat(bytes_, 3, axis=2) if channels == 1 else bytes_[..., :3]


def _in_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        raise ValueError(f"of {image.dtype}; needed is uint8, or floats from 0 to 1")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # also what is not a number
        raise ValueError(f"of {image.dtype} from {low:g} to {high:g}; needed is uint8, or floats from 0 to 1")
    return np.round(image * 255.0).astype(np.uint8)
