"""Standard output and error as what they are: for whoever looks. That nobody does is no reason to fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import UnsupportedOperation
from typing import Any, TextIO, cast

__all__ = ["unfailing", "unfailing_output"]


class _UnfailingStream:
    """A text stream whose `write` and `flush` never raise: what cannot be written is dropped.

    A reader that went away (``| head -1``), a terminal that was closed, a disk that is full, a letter that the encoding
    lacks. Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed = False
        """Whether something was dropped."""

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeError:
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # A ValueError says that it was closed.
            self.failed = True
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.failed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unfailing(stream: TextIO) -> TextIO:
    """The stream, without its failures."""
    return cast(TextIO, _UnfailingStream(stream))


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Within it nothing that prints fails, whoever prints: ``print``, a progress bar, logging, a simulator."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    streams = [_UnfailingStream(stream or open(os.devnull, "w")) for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], tuple(streams))
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
            if stream.failed:
                _point_to_nothing(stream)
        sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """A program that was started without standard streams (``>&-``) would open its sockets and files in their place.

    Whatever a library of C's prints would then go into them.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _point_to_nothing(stream: _UnfailingStream) -> None:
    """So that the interpreter, which flushes at its end, has no error to report with an exit code of its own."""
    # Not every stream has a descriptor, and one that was closed has none any more.
    with suppress(OSError, ValueError, UnsupportedOperation), open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
