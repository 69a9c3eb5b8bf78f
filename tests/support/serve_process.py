"""async-delta-serve in a process of its own, until the end of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 240.0
"""For the exit of a process that may still be loading lerobot."""


@contextmanager
def serve_process(flags: Sequence[str], cwd: Path, environment: dict[str, str] | None = None) -> Iterator[list[str]]:
    """The URIs that the command announced. At the end it must go by itself, with exit code 0."""
    read_fd, write_fd = os.pipe()
    parent = {"ASYNC_DELTA_ANNOUNCE_FD": str(write_fd), "ASYNC_DELTA_EXIT_WITH_STDIN": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "async_delta_inference.server_adapter", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[write_fd],
        cwd=cwd,
        env=os.environ | parent | (environment or {}),
    )
    os.close(write_fd)
    try:
        with os.fdopen(read_fd) as announcement:
            uris = announcement.read().split()
        assert uris, "the server did not start"
        yield uris
    finally:
        assert process.stdin is not None
        process.stdin.close()
        code = process.wait(START_TIMEOUT_S)
    assert code == 0
