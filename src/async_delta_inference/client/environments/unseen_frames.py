"""`frames_unseen`: within it nothing that MuJoCo would render is rendered, whoever asks; the last picture stands in.

Whatever renders with MuJoCo from Python, ``mujoco.Renderer``, gymnasium's ``MujocoRenderer``, dm_control, robosuite,
ends in two functions of the ``mujoco`` module: one draws a scene, one reads the pixels. They are looked up there at
every call, so replacing them there reaches all of it, and all that goes before (scenes, cameras, markers) happens as
ever. Whether an environment minds is for `prove_frames` to find out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["frames_unseen", "has_skippable_frames", "looks_taken", "may_look", "seen_or_last"]


class _Gate:
    """Of this process: simulators are stepped one at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.looks = 0
        self.pictures: dict[tuple[Any, ...], NDArray[Any]] = {}


_gate = _Gate()


@contextmanager
def frames_unseen(unseen: bool = True) -> Iterator[None]:
    """Nobody will look at what is rendered within the block.

    Args:
        unseen: False: somebody may, and all is as ever.
    """
    _replace_in_mujoco()
    before, _gate.closed = _gate.closed, unseen
    try:
        yield
    finally:
        _gate.closed = before


def has_skippable_frames(env: Any) -> bool:
    """Whether there may be something that an environment renders and that can be left out.

    Args:
        env: A gymnasium environment, wrapped or not, that was built: what renders is imported by then.
    """
    return "mujoco" in sys.modules or env.has_wrapper_attr("renders_for_observation")


def looks_taken() -> int:
    """How often something was rendered in this process, as far as it can be left out."""
    return _gate.looks


def may_look() -> bool:
    """Whether somebody may look at what is rendered now. Counts it as a look if so."""
    if not _gate.closed:
        _gate.looks += 1
    return not _gate.closed


def seen_or_last[PictureT](last: PictureT | None, render: Callable[[], PictureT]) -> PictureT:
    """What is rendered now, or the last picture where nobody looks and there is one."""
    return render() if last is None or may_look() else last


def _replace_in_mujoco() -> None:
    """Once, after it was imported: whoever imports a renderer by `from mujoco import` before that always renders."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or getattr(mujoco.mjr_render, "skips_unseen", False):
        return
    render, read_pixels = mujoco.mjr_render, mujoco.mjr_readPixels

    def mjr_render(*arguments: Any, **named: Any) -> None:
        if may_look():
            render(*arguments, **named)

    def mjr_readPixels(  # noqa: N802 - MuJoCo's name
        rgb: NDArray[Any] | None, depth: NDArray[Any] | None, viewport: Any, con: Any
    ) -> None:
        buffers = [(("rgb", "depth")[i], buffer) for i, buffer in enumerate((rgb, depth)) if buffer is not None]
        if not _gate.closed:
            read_pixels(rgb, depth, viewport, con)
            for kind, buffer in buffers:
                _gate.pictures[_of(kind, buffer, con)] = buffer.copy()
            return
        for kind, buffer in buffers:
            last = _gate.pictures.get(_of(kind, buffer, con))
            buffer[...] = 0 if last is None else last

    mjr_render.skips_unseen = True  # type: ignore[attr-defined]
    for module in (mujoco, sys.modules.get("mujoco._render")):
        for name, function in (("mjr_render", mjr_render), ("mjr_readPixels", mjr_readPixels)):
            if module is not None and hasattr(module, name):
                setattr(module, name, function)


def _of(kind: str, buffer: NDArray[Any], con: Any) -> tuple[Any, ...]:
    """One last picture for each context and size, and no more than that: simulators come and go."""
    if len(_gate.pictures) > 64:
        _gate.pictures.clear()
    return kind, id(con), buffer.shape, np.dtype(buffer.dtype).str
