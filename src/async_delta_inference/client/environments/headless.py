"""MuJoCo without a display: which software renders, and on which device, decided before any simulator is imported."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator

from async_delta_inference.errors import ConfigError

__all__ = ["choose_renderer", "cuda_devices_unseen", "require_renderer"]

_GL, _DEVICE, _CUDA = "MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
_OFF = ("disable", "disabled", "off", "false", "0")


def choose_renderer(device: int | None = None) -> None:
    """Choose a renderer where the user chose none and there is no display: EGL, else OSMesa, which is slower.

    And where EGL renders, its device, apart from the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves to policies: some
    simulators would take that variable's value for theirs. Nothing is chosen where nothing can render, which is no
    matter for an environment without MuJoCo.

    Args:
        device: Number of the EGL device; None: that of ``MUJOCO_EGL_DEVICE_ID``, else one that is there.

    Raises:
        ConfigError: There is no such device.
    """
    if sys.platform == "linux" and not os.environ.get(_GL) and not os.environ.get("DISPLAY"):
        for renderer in _LIBRARIES:
            if _is_installed(renderer):
                os.environ[_GL] = renderer
                break
    if _chosen() != "osmesa":
        _choose_device(device)


def require_renderer() -> None:
    """For an environment that renders with MuJoCo, after `choose_renderer`.

    Raises:
        ConfigError: What is chosen is not installed, or needs a display; names the packages.
    """
    choose_renderer()
    chosen = _chosen()
    if chosen in _OFF:
        raise ConfigError(f"{_GL}={chosen} turns rendering off: leave it unset, or take egl or osmesa")
    if chosen in _LIBRARIES and not _is_installed(chosen):
        raise ConfigError(
            f"{_GL}={chosen} needs lib{_LIBRARIES[chosen]}, which is not installed: apt-get install "
            f"{_PACKAGES[chosen]}, or leave {_GL} unset"
        )
    if sys.platform == "linux" and chosen not in _LIBRARIES and not os.environ.get("DISPLAY"):
        if chosen:
            raise ConfigError(f"{_GL}={chosen} needs a display, and DISPLAY is not set: leave it unset, or take egl")
        raise ConfigError(f"nothing can render without a display: apt-get install {_PACKAGES['egl']} (or set {_GL})")


@contextlib.contextmanager
def cuda_devices_unseen() -> Iterator[None]:
    """For robosuite, which at its import refuses an EGL device that is not among the GPUs left to CUDA."""
    seen = os.environ.pop(_CUDA, None)
    try:
        yield
    finally:
        if seen is not None:
            os.environ[_CUDA] = seen


def _choose_device(device: int | None) -> None:
    given = (os.environ.get(_DEVICE) or None) if device is None else str(device)
    if given is None:
        if _CUDA in os.environ:
            # The GPU that this process was given, where it is one; names, -1 and numbers of other machines are none.
            first = os.environ[_CUDA].split(",")[0].strip()
            os.environ[_DEVICE] = first if first.isdecimal() and int(first) < _egl_devices() else "0"
        return
    there = _egl_devices()
    if not given.isdecimal() or (there and int(given) >= there):
        flag = f"{_DEVICE}={given}" if device is None else f"--render_device={given}"
        raise ConfigError(f"{flag} is not the number of a device that EGL can render on: it finds {there}, from 0 on")
    os.environ[_DEVICE] = given


def _chosen() -> str:
    return os.environ.get(_GL, "").lower().strip()


def _is_installed(renderer: str) -> bool:
    return ctypes.util.find_library(_LIBRARIES[renderer]) is not None


def _egl_devices() -> int:
    """How many there are; 0 where nobody says."""
    library = ctypes.util.find_library("EGL")
    if library is None:
        return 0
    try:
        get_function = ctypes.CDLL(library).eglGetProcAddress
    except (OSError, AttributeError):
        return 0
    get_function.restype = ctypes.c_void_p
    address = get_function(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int()
    return count.value if query(0, None, ctypes.byref(count)) else 0
