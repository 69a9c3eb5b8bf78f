"""Files that are there whole or not at all: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["partial_path", "why_not", "write_whole"]


def partial_path(path: Path) -> Path:
    """Where a file is until it is whole: beside it, since only a rename within a file system is one step.

    The ending stays: writers of pictures and videos take the format from it.
    """
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that whoever looks, now or after a crash, finds the whole of it or what was there before.

    Args:
        path: Its folder is made when missing.
        write: Writes the file at the path that it is given.

    Raises:
        OSError: It cannot be written. Nothing else of `write`'s is caught; in either case what was there before is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        write(partial)
        # A disk that is full may say so only now.
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def why_not(exc: BaseException) -> str:
    """In a few words on one line, why something could not be done; the path is the caller's to say."""
    if isinstance(exc, OSError) and exc.strerror:
        return str(exc.strerror)
    return " ".join(f"{type(exc).__name__}: {exc}".split()).rstrip(":")
