"""What a program that starts ``async-delta-serve`` for itself tells it, by environment variables."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from async_delta_inference.errors import ConfigError

__all__ = ["ANNOUNCE_FD", "EXIT_WITH_STDIN", "Parent"]

ANNOUNCE_FD = "ASYNC_DELTA_ANNOUNCE_FD"
"""File descriptor to write the URIs to once they are served, one line each."""

EXIT_WITH_STDIN = "ASYNC_DELTA_EXIT_WITH_STDIN"
"""1: end when standard input does, since whoever holds its other end is gone."""


@dataclass(frozen=True)
class Parent:
    """The program that started the command, if it is one that said so.

    Args:
        announce_fd: See `ANNOUNCE_FD`.
        ends_us: See `EXIT_WITH_STDIN`.
    """

    announce_fd: int | None = None
    ends_us: bool = False

    @classmethod
    def from_environment(cls) -> Self:
        """What the environment says, taken out of it: it is not for the processes that this one starts.

        Raises:
            ConfigError: A variable has a value that it cannot have.
        """
        fd, ends_us = os.environ.pop(ANNOUNCE_FD, ""), os.environ.pop(EXIT_WITH_STDIN, "")
        if ends_us not in ("", "0", "1"):
            raise ConfigError(f"{EXIT_WITH_STDIN} must be 0 or 1, got {ends_us!r}")
        return cls(_open_descriptor(fd) if fd else None, ends_us == "1")

    def ends_us_at_once(self) -> None:
        """From now on the end of standard input is the end of this process, whatever it is doing.

        For as long as it has nothing to tidy up and may be deaf: loading a large library, no thread of Python's runs.
        """
        if self.ends_us:
            _signal_at_end_of_stdin(signal.SIGKILL)

    def ends_us_in_order(self) -> None:
        """From now on it is for this process to notice and to tidy up; where it was stopped, it is woken for that."""
        if self.ends_us:
            _signal_at_end_of_stdin(signal.SIGCONT)

    def announce(self, uris: Sequence[str]) -> None:
        """Write the URIs, and close the descriptor."""
        if self.announce_fd is None:
            return
        with os.fdopen(self.announce_fd, "w") as announcement:
            announcement.write("\n".join(uris) + "\n")


def _signal_at_end_of_stdin(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when nobody holds the other end of the pipe any more.

    A no-op where the kernel cannot: on Linux it can.
    """
    if sys.platform != "linux":
        return
    stdin = sys.stdin.fileno()
    fcntl.fcntl(stdin, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(stdin, fcntl.F_SETSIG, number)
    fcntl.fcntl(stdin, fcntl.F_SETFL, fcntl.fcntl(stdin, fcntl.F_GETFL) | os.O_ASYNC)
    # It may have ended before: then nothing is sent any more.
    if select.select([stdin], [], [], 0.0)[0]:
        os.kill(os.getpid(), number)


def _open_descriptor(text: str) -> int:
    try:
        fd = int(text)
        os.fstat(fd)
    except (ValueError, OverflowError, OSError) as exc:
        raise ConfigError(f"{ANNOUNCE_FD}={text} is not an open file descriptor") from exc
    return fd
