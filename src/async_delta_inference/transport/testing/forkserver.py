"""Processes that a test can kill, forked from one that has loaded a backend once.

Python's own fork server is one for the whole program: whoever starts it first decides what it has loaded, and its
children see the environment of that moment. Here each backend has one, and a child sees the environment of its start.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection, Pipe

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.registry import backend

__all__ = ["ForkedProcess", "ForkServer", "fork_server", "main"]

DEATH_TIMEOUT_S = 60.0
START_TIMEOUT_S = 180.0
"""For the first process of a run: a backend may load torch."""

_PID_BYTES = 8


class ForkedProcess:
    """A running process and the test's end of a pipe to it.

    Args:
        pid: Its process id.
        connection: Both ways; it reads as ended once the process is gone.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self.connection = connection
        self._handle = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL, and return when it is gone. Idempotent."""
        if self._handle < 0:
            return
        with suppress(ProcessLookupError):  # It has ended by itself.
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        gone, _, _ = select.select([self._handle], [], [], DEATH_TIMEOUT_S)
        os.close(self._handle)
        self._handle = -1
        self.connection.close()
        if not gone:
            raise RuntimeError(f"process {self.pid} did not die within {DEATH_TIMEOUT_S:g} s of SIGKILL")


class ForkServer:
    """A process that has loaded a backend, and others, and forks on demand. It ends with this one.

    Args:
        scheme: Of the backend.
        modules: Loaded, too.
    """

    def __init__(self, scheme: str, modules: tuple[str, ...]) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_TIMEOUT_S)
        self._late = 0
        command = f"from {__name__} import main; main({theirs.fileno()}, {scheme!r}, {modules!r})"
        # Whatever this process can import, that one can, too.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen([sys.executable, "-c", command], pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        atexit.register(self._stop)

    def start(self, target: Callable[..., None], *arguments: object) -> ForkedProcess:
        """Run ``target(connection, *arguments)`` in a new process.

        Args:
            target: A function that the process can import by its name.
            arguments: Picklable.
        """
        ours, theirs = Pipe()
        try:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            pid = self._next_pid()
        finally:
            theirs.close()
        if len(pid) < _PID_BYTES:
            raise RuntimeError("the process that tests are forked from has ended; its output says why")
        process = ForkedProcess(int.from_bytes(pid), ours)
        ours.send((dict(os.environ), sys.path, os.getcwd()))
        ours.send((target, arguments))
        return process

    def _next_pid(self) -> bytes:
        """Of the process that was asked for last: those that came too late for a test, and ended since, come first."""
        self._late += 1
        while True:
            pid = self._control.recv(_PID_BYTES)
            self._late -= 1
            if not self._late or not pid:
                return pid

    def _stop(self) -> None:
        self._control.close()
        self._process.wait(DEATH_TIMEOUT_S)


@cache
def fork_server(scheme: str, *modules: str) -> ForkServer:
    """The one of this process for a scheme; loading starts at once."""
    return ForkServer(scheme, modules)


def main(control_fd: int, scheme: str, modules: tuple[str, ...]) -> None:
    """The process that forks.

    Args:
        control_fd: A socket: a byte and a file descriptor ask for a child, whose id is the answer.
        scheme: Of the backend to load.
        modules: To load.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ConfigError):  # The child runs into the same, and can say so.
        backend(scheme)
    for module in modules:
        import_module(module)
    # The kernel forgets the children as they end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=control_fd)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            _be_the_child(Connection(descriptors[0]))
        os.close(descriptors[0])
        control.sendall(pid.to_bytes(_PID_BYTES))


def _be_the_child(connection: Connection) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 1
    try:
        environment, path, folder = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        os.chdir(folder)
        target, arguments = connection.recv()
        target(connection, *arguments)
        status = 0
    except BaseException:  # noqa: BLE001 - the last resort of a process that nobody else watches
        traceback.print_exc()
    finally:
        # Not the exit of the process it was forked from, with what that has registered.
        os._exit(status)
