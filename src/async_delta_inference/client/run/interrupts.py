"""Interrupts: `interrupts_held` for what must not be done by halves, `interrupts_kept` so that none is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["KeptInterrupts", "interrupts_held", "interrupts_kept"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LONGEST_S = 10.0
"""Whoever still interrupts after that wants to be heard: something in there hangs."""


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A Ctrl-C, or another signal that a program handles as one, waits for the end of the block.

    Only in the main thread, where Python handles signals; another one is never interrupted.
    """
    if not _in_main_thread():
        yield
        return
    held = _Held()
    try:
        held.take_over()
        yield
    finally:
        held.end()


@contextmanager
def interrupts_kept() -> Iterator[KeptInterrupts]:
    """An interrupt that other people's code swallows is raised again: by `KeptInterrupts.check`, or after the block.

    Some code cannot pass an exception on, such as a physics engine that calls back into Python, or a finaliser: there
    Python prints that the interrupt was ignored, and goes on.
    """
    kept = KeptInterrupts()
    if not _in_main_thread():
        yield kept
        return
    try:
        kept.take_over()
        yield kept
    finally:
        kept.put_back()
    kept.check()


class _StandIn:
    """A signal handler in the place of those that a program set itself."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def take_over(self) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                # First, since the signal may come as soon as the handler is set.
                self.handlers[number] = handler
                signal.signal(number, self)

    def put_back(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class KeptInterrupts(_StandIn):
    """Remembers that a handler raised `KeyboardInterrupt`, wherever that went."""

    def __init__(self) -> None:
        super().__init__()
        self._raised = False

    def check(self) -> None:
        """Raise the interrupt that came and did not get through.

        Raises:
            KeyboardInterrupt: There is one.
        """
        if self._raised:
            self._raised = False
            raise KeyboardInterrupt

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on, and remember that it interrupted."""
        try:
            self.handlers[number](number, frame)
        except KeyboardInterrupt:
            self._raised = True
            raise


class _Held(_StandIn):
    """Passes the first signal on at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._came: tuple[int, FrameType | None] | None = None
        self._ends_s = time.monotonic() + _LONGEST_S
        self._over = False

    def end(self) -> None:
        # First: what comes while the handlers are put back goes to them.
        self._over = True
        self.put_back()
        if self._came is not None:
            self.handlers[self._came[0]](*self._came)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._over or time.monotonic() > self._ends_s:
            self.handlers[number](number, frame)
        elif self._came is None:
            self._came = (number, frame)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
