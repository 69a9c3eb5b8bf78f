"""MuJoCo without a display: which software renders, decided before MuJoCo is imported."""

from __future__ import annotations

import ctypes.util
import os

from async_delta_inference.errors import ConfigError

__all__ = ["prepare_rendering"]


def prepare_rendering() -> None:
    """Choose a renderer where the user chose none and there is no display; EGL, else OSMesa, which is slower.

    Raises:
        ConfigError: Neither is installed; names the packages.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        # robosuite would read it as a list of numbers, and die of an empty one.
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", "0")
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY"):
        return
    for renderer, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = renderer
            return
    raise ConfigError(
        "nothing can render without a display: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (or set MUJOCO_GL)"
    )
