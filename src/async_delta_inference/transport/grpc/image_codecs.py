"""Frames as PNG or JPEG, and back. What a peer sent is decoded only when it says that it has the agreed size."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ConfigError, MissingExtraError, ProtocolError

__all__ = ["check", "decode", "encode", "most_bytes"]

Shape = tuple[int, int, int]

JPEG_QUALITY = 90
PNG_LEVEL = 1
"""The fastest that compresses."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"png": (1, 3, 4), "jpeg": (1, 3)}
_OVERHEAD_BYTES = 4096


def check(encoding: str, shapes: dict[str, Shape]) -> None:
    """Refuse what cannot be encoded, before a session begins.

    Raises:
        ConfigError: A camera has more channels than the format.
        MissingExtraError: Pillow is not installed.
    """
    if encoding == "raw":
        return
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingExtraError("grpc", f"--grpc.image_encoding={encoding}") from exc
    for name, (_, _, channels) in shapes.items():
        if channels not in _CHANNELS[encoding]:
            raise ConfigError(
                f"the camera {name!r} has {channels} channels, which --grpc.image_encoding={encoding} lacks"
            )


def most_bytes(shape: Shape) -> int:
    """Upper bound of an encoded image: noise grows a little."""
    height, width, channels = shape
    size = height * width * channels
    return size + size // 4 + height + _OVERHEAD_BYTES


def encode(image: NDArray[np.uint8], encoding: str) -> bytes:
    """An image of (height, width, channels) as a file of that format."""
    from PIL import Image

    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    file = BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if encoding == "png":
        picture.save(file, "PNG", compress_level=PNG_LEVEL)
    else:
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def decode(data: bytes, encoding: str, shape: Shape) -> NDArray[np.uint8]:
    """The image of a peer's file.

    Raises:
        ProtocolError: It is no such file, or has another size.
    """
    from PIL import Image

    height, width, channels = shape
    try:
        with Image.open(BytesIO(data), formats=[encoding.upper()]) as picture:
            if picture.size != (width, height) or picture.mode != _MODES[channels]:
                raise ProtocolError(f"the client sent an image of {picture.size} {picture.mode}, agreed were {shape}")
            pixels = np.asarray(picture, np.uint8)
    except ProtocolError:
        raise
    except Exception as exc:
        raise ProtocolError(f"the client sent an image that cannot be read: {type(exc).__name__}: {exc}") from exc
    return pixels.reshape(shape)
