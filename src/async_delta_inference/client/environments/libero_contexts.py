"""Rendering contexts of several simulators of LIBERO's in one process: each is used, and freed, while it is current.

OpenGL knows textures and buffers by numbers that every context counts anew, and frees those of whichever context is
current. Robosuite frees its own without making their context current: with another simulator's current, that one's
textures went, and its next pictures were of another world, without a word. It does so when Python collects them, which
may be in the middle of another one's picture; so what is collected is put aside, and freed between two pictures.
"""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["free_collected", "free_while_current", "make_current"]

_collected: list[tuple[Any, Any]] = []
"""MuJoCo's context, and the one of OpenGL that it is in."""


def make_current(render_context: Any) -> None:
    """Render in this one from here on.

    Args:
        render_context: Robosuite's ``MjRenderContext``.
    """
    free_collected()
    render_context.gl_ctx.make_current()


def free_while_current(render_context: Any) -> None:
    """Have a context of robosuite's be put aside when it is collected, for `free_collected`; idempotent."""
    kind: Any = type(render_context)
    if not getattr(kind, "is_put_aside", False):
        render_context.__class__ = _put_aside(kind)


def free_collected() -> None:
    """Free what was put aside, each while it is current; afterwards none may be."""
    while _collected:
        mujoco_context, gl_context = _collected.pop()
        gl_context.make_current()
        mujoco_context.free()
        gl_context.free()


@cache
def _put_aside(kind: type) -> Any:
    def __del__(self: Any) -> None:  # noqa: N807 - it is one
        _collected.append((self.con, self.gl_ctx))

    return type(kind.__name__, (kind,), {"__del__": __del__, "is_put_aside": True})
