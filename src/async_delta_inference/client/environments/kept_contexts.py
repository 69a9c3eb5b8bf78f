"""MuJoCo's rendering contexts stay until the process ends: none is freed in the middle of another one's pictures.

OpenGL knows textures and buffers by numbers that every context counts anew. MuJoCo's ``MjrContext`` frees its own when
Python collects it, in whichever context of OpenGL is current then. A simulator's closing ends its context of OpenGL,
and with it all that was in there; what is left of it is collected at any time later, while the next simulator's context
is current: that one's buffers were freed, and its pictures were black from there on, without a word. So whatever is
seen to be rendered with is kept: some kilobytes for each simulator.

dm_control frees its contexts where they belong, and insists that nobody else holds them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any

__all__ = ["keep_rendering_contexts"]

_TIDY_PACKAGE = "dm_control."
_NEAR = 5
"""Calls between such a package and MuJoCo's functions, at most."""

_kept: dict[int, Any] = {}


def keep_rendering_contexts() -> None:
    """Keep those that are used from here on, if anything here renders with MuJoCo. Idempotent."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or getattr(mujoco.mjr_setBuffer, "keeps_contexts", False):
        return
    # The first is called once for each context, when it is made; the second for those that are there already.
    for name in ("mjr_setBuffer", "mjr_render"):
        keeping = _keeping(getattr(mujoco, name))
        for module in (mujoco, sys.modules.get("mujoco._render")):
            if module is not None and hasattr(module, name):
                setattr(module, name, keeping)


def _keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    """Both take the context last, or by its name."""

    @wraps(function)
    def keeping(*arguments: Any, **named: Any) -> Any:
        context = named.get("con", arguments[-1] if arguments else None)
        if id(context) not in _kept and not _is_called_by_the_tidy(sys._getframe(1)):
            _kept[id(context)] = context
        return function(*arguments, **named)

    keeping.keeps_contexts = True  # type: ignore[attr-defined]
    return keeping


def _is_called_by_the_tidy(frame: FrameType | None) -> bool:
    for _ in range(_NEAR):
        if frame is None:
            return False
        if str(frame.f_globals.get("__name__", "")).startswith(_TIDY_PACKAGE):
            return True
        frame = frame.f_back
    return False
