"""Objects of a test's that live in another process, or in a thread of this one, and do what they are told by a pipe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from async_delta_inference.transport.registry import backend
from async_delta_inference.transport.testing.forkserver import START_TIMEOUT_S, ForkedProcess, fork_server

__all__ = ["Commands", "Remote"]

Commands = Mapping[str, Callable[..., Any]]
"""What can be told, by name. ``"die"`` ends abruptly what cannot be killed because it shares the test's process."""

Make = Callable[..., Commands]


class Remote:
    """What ``make(*arguments)`` gives, where a SIGKILL meets it alone; or in a thread, for a backend within a process.

    Args:
        scheme: Of the backend, which decides where.
        make: A function that another process can import by its name.
        arguments: Picklable.
        preload: Modules that take long to load.
    """

    def __init__(self, scheme: str, make: Make, *arguments: object, preload: tuple[str, ...] = ()) -> None:
        self._process: ForkedProcess | None = None
        self._thread: threading.Thread | None = None
        if backend(scheme).listener.reach == "process":
            self._connection, theirs = Pipe()
            self._thread = threading.Thread(target=run_commands, args=(theirs, make, *arguments), daemon=True)
            self._thread.start()
        else:
            self._process = fork_server(scheme, *preload).start(run_commands, make, *arguments)
            self._connection = self._process.connection
        try:
            self._read_reply("start")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int | None:
        """The id of its process; None for a thread."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """False once it was killed."""
        return not self._connection.closed

    def ask(self, command: str, *arguments: object) -> Any:
        """Have it do something and return what comes of it.

        Raises:
            Exception: What the command raised there.
            RuntimeError: It does not answer.
        """
        self.tell(command, *arguments)
        return self._read_reply(command)

    def tell(self, command: str, *arguments: object) -> None:
        """Have it do something without waiting for it; nothing but `kill` may follow."""
        self._connection.send((command, arguments))

    def kill(self) -> None:
        """SIGKILL, or the most abrupt end that a thread can have. Idempotent."""
        if self._process is not None:
            self._process.kill()
        elif self._thread is not None and not self._connection.closed:
            if self._thread.is_alive():
                self._connection.send(("die", ()))
            self._thread.join(START_TIMEOUT_S)
            self._connection.close()
            assert not self._thread.is_alive(), "what shares this process does not end"

    def _read_reply(self, command: str) -> Any:
        if not self._connection.poll(START_TIMEOUT_S):
            raise RuntimeError(f"no answer to {command}")
        try:
            raised, value = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"it ended instead of answering {command}; its output says why") from None
        if raised:
            raise value
        return value


def run_commands(connection: Connection, make: Make, *arguments: object) -> None:
    """Make the object, then do what it is told until the test's end of the pipe is closed.

    Args:
        connection: To the test.
        make: Gives the commands.
        arguments: Of ``make``.
    """
    commands: Commands = {}

    def start() -> None:
        nonlocal commands
        commands = make(*arguments)

    _answer(connection, start)
    while commands:
        try:
            command, values = connection.recv()
        except EOFError:
            break
        _answer(connection, commands[command], *values)
        if command == "die":
            break
    connection.close()


def _answer(connection: Connection, call: Callable[..., Any], *arguments: object) -> None:
    try:
        reply = (False, call(*arguments))
    except Exception as exc:  # noqa: BLE001 - raised again in the test
        reply = (True, exc)
    try:
        connection.send(reply)
    except BrokenPipeError:
        return  # The test waits no longer.
