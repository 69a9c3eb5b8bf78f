"""`interrupts_held`: what must not be done by halves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["interrupts_held"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LONGEST_S = 10.0
"""Whoever still interrupts after that wants to be heard: something in there hangs."""


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A Ctrl-C, or another signal that a program handles as one, waits for the end of the block.

    Only in the main thread, where Python handles signals; another one is never interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = _Held()
    try:
        held.begin()
        yield
    finally:
        held.end()


class _Held:
    """Stands in for the handlers of a program, and passes the first signal on at the end."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: tuple[int, FrameType | None] | None = None
        self._ends_s = time.monotonic() + _LONGEST_S
        self._over = False

    def begin(self) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self)

    def end(self) -> None:
        # First: what comes while the handlers are put back goes to them.
        self._over = True
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._came is not None:
            self._handlers[self._came[0]](*self._came)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._over or time.monotonic() > self._ends_s:
            self._handlers[number](number, frame)
        elif self._came is None:
            self._came = (number, frame)
