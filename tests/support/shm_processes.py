"""Starts `shm_actor` processes, waits for what they say, and looks at what they leave."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from async_delta_inference.transport.shm.shared import rendezvous
from async_delta_inference.transport.shm.shared.segment import bell_name

ACTOR = Path(__file__).parent / "shm_actor.py"
WAIT_S = 60.0
"""For a process to start or to end: generous, for a loaded machine."""


class Actor:
    """A child process that says words on standard output."""

    def __init__(self, role: str, name: str, point: str | None = None) -> None:
        arguments = [sys.executable, str(ACTOR), role, name, *([point] if point else [])]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._said: list[str] = []
        self._condition = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait_for(self, word: str) -> None:
        with self._condition:
            if not self._condition.wait_for(lambda: word in self._said, WAIT_S):
                raise AssertionError(f"the process never said {word!r}; it said {self._said}")

    def kill(self) -> None:
        self.process.kill()
        self._finish()

    def end(self) -> int:
        """Let it end by itself; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._finish()

    def _finish(self) -> int:
        code = self.process.wait(WAIT_S)
        self._listener.join(WAIT_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return code

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._condition:
                self._said.append(line.strip())
                self._condition.notify_all()


@contextmanager
def actor(role: str, name: str, point: str | None = None) -> Iterator[Actor]:
    running = Actor(role, name, point)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


def eventually(condition: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {within_s} s in vain: {what}"
        time.sleep(0.005)


def of_server(name: str) -> list[str]:
    """What a live server of that name has in /dev/shm and in the rendezvous folder: its bell and its socket."""
    path = rendezvous.socket_path(name)
    return [f"sem.{bell_name(rendezvous.server_key(path))[1:]}", path.name]


NAMES = ("here", "there", "other", "victim", "embedded-1", "embedded-by-somebody-killed")
"""The names of the servers in these tests."""


def left_behind(folder: Path) -> list[str]:
    """Everything in the rendezvous folder, and what servers of this folder have in /dev/shm: others may test, too."""
    keys = [rendezvous.server_key(folder / f"{name}.sock") for name in NAMES]
    entries = [p.name for p in Path("/dev/shm").glob("*adi-*") if any(key in p.name for key in keys)]
    return entries + [p.name for p in folder.iterdir()]
