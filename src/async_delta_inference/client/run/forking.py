"""`Forker`: processes that start in milliseconds and may die, forked from one that has loaded what they need.

That one is forked from this process where that is safe, see `can_fork`; elsewhere it is a new Python. None of them
outlives this process: the kernel kills the workers as soon as nobody holds the other end of a pipe of theirs, also when
they hang.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from async_delta_inference.client.run.child_process import ASK_NVML, can_fork
from async_delta_inference.errors import PeerUnreachableError

__all__ = ["Forked", "Forker", "import_main", "main", "main_module"]

_PRELOADED_IF_HERE = ("lerobot.envs.configs", "lerobot.envs.factory", "gymnasium")
"""Loaded where this process has done so, since the workers will need it, too."""
_PRELOADED = ("async_delta_inference.client.run.worker",)
_ANSWER_TIMEOUT_S = 300.0
"""The first answer comes when everything is loaded."""
_DEATH_TIMEOUT_S = 10.0
_WORD_BYTES = 8


class Forked:
    """A worker process and our end of the pipe to it.

    Args:
        forker: Its parent's.
        pid: Its process id.
        connection: Both ways.
        life: Our end of the pipe that it dies with.
    """

    def __init__(self, forker: Forker, pid: int, connection: Connection, life: int) -> None:
        self.pid = pid
        self.connection = connection
        self.handle = os.pidfd_open(pid)
        """Readable once it has ended."""
        self._forker = forker
        self._life = life

    def kill(self) -> None:
        """SIGKILL; `ended` tells when it is gone."""
        if self.handle >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within so many seconds."""
        return self.handle < 0 or bool(select.select([self.handle], [], [], timeout_s)[0])

    def reap(self) -> str:
        """Once it has ended: how, in words; nothing of it is left."""
        status = self._forker.status_of(self.pid)
        os.close(self.handle)
        os.close(self._life)
        self.handle = -1
        self.connection.close()
        return _in_words(status)


class Forker:
    """Starts worker processes.

    Args:
        log_path: Where what they print goes.
    """

    def __init__(self, log_path: Path) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_ANSWER_TIMEOUT_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        with log_path.open("ab") as log:
            if can_fork("lerobot.envs.configs"):
                self._pid = os.fork()
                if self._pid == 0:
                    _become_forker(self._control, theirs, log.fileno())
            else:
                self._process = _fresh_interpreter(theirs, log.fileno())
        theirs.close()

    def start(self, target: Callable[..., None], *arguments: object) -> Forked:
        """Run ``target(connection, *arguments)`` in a new process.

        Args:
            target: A function that the process can import by its name.
            arguments: Picklable.

        Raises:
            PeerUnreachableError: The process that forks is gone.
        """
        ours, theirs = Pipe()
        their_life, our_life = os.pipe()
        try:
            socket.send_fds(self._control, [b"f".ljust(_WORD_BYTES)], [theirs.fileno(), their_life])
            pid = self._answer()
        except OSError:
            os.close(our_life)
            ours.close()
            raise PeerUnreachableError("the process that workers are forked from has ended; its log says why") from None
        finally:
            theirs.close()
            os.close(their_life)
        forked = Forked(self, pid, ours, our_life)
        ours.send((dict(os.environ), sys.path, os.getcwd(), main_module()))
        ours.send((target, arguments))
        return forked

    def status_of(self, pid: int) -> int | None:
        """The wait status of one that has ended; None where nobody knows."""
        try:
            self._control.sendall(f"w{pid}".encode().ljust(_WORD_BYTES))
            return self._answer()
        except OSError:
            return None

    def stop(self) -> None:
        """End the process that forks. The workers should have ended before; those that have not are killed by this."""
        self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_DEATH_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif self._pid:
            handle = os.pidfd_open(self._pid)
            if not select.select([handle], [], [], _DEATH_TIMEOUT_S)[0]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _answer(self) -> int:
        answer = self._control.recv(_WORD_BYTES, socket.MSG_WAITALL)
        if len(answer) < _WORD_BYTES:
            raise OSError("no answer")
        return int.from_bytes(answer)


def main(control_fd: int, modules: Sequence[str] = ()) -> None:
    """The process that forks: loads, then answers on a socket until that ends.

    Args:
        control_fd: Of the socket. ``f`` with two descriptors asks for a child, ``w`` and a process id for its status.
        modules: To load besides the worker's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault(ASK_NVML, "1")  # Or no worker could use a GPU.
    for module in (*_PRELOADED, *modules):
        with suppress(ImportError):  # The worker runs into the same, and can say so.
            import_module(module)
    # What is loaded stays. A worker's collector leaves it, and the memory that it shares, alone, and so comes by often
    # enough for what an episode leaves: before, it waited for a quarter as many objects as there are.
    gc.collect()
    gc.freeze()
    gc.collect()  # It counts anew what there is.
    control = socket.socket(fileno=control_fd)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _WORD_BYTES, 2)
        if not message:
            return
        if message.startswith(b"w"):
            _, status = os.waitpid(int(message[1:]), 0)
            control.sendall(status.to_bytes(_WORD_BYTES))
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            _be_the_worker(Connection(descriptors[0]), descriptors[1])
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(pid.to_bytes(_WORD_BYTES))


def _become_forker(ours: socket.socket, theirs: socket.socket, log_fd: int) -> None:
    """In the forked child; never returns."""
    status = 1
    try:
        os.setsid()  # A Ctrl-C at the terminal is the parent's to handle.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        ours.close()
        _print_into(log_fd)
        main(theirs.detach())
        status = 0
    except BaseException:  # noqa: BLE001 - the last resort of a process that nobody else watches
        traceback.print_exc()
    finally:
        os._exit(status)


def _fresh_interpreter(theirs: socket.socket, log_fd: int) -> subprocess.Popen[bytes]:
    modules = [module for module in _PRELOADED_IF_HERE if module in sys.modules]
    command = f"from {__name__} import main; main({theirs.fileno()}, {modules!r})"
    return subprocess.Popen(
        # -P: the working directory, and what happens to be in it, is not on its path.
        [sys.executable, "-P", "-c", command],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        start_new_session=True,
        # Whatever this process can import, that one can, too.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _print_into(log_fd: int) -> None:
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)


def _be_the_worker(connection: Connection, life_fd: int) -> None:
    """Never returns."""
    status = 1
    try:
        _die_with(life_fd)
        environment, path, folder, main_module = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        sys.path[:] = path
        os.chdir(folder)
        import_main(main_module)
        target, arguments = connection.recv()
        target(connection, *arguments)
        status = 0
    except (EOFError, BrokenPipeError):
        pass  # Whoever started it is gone.
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not the exit of the process it was forked from, with what that has registered.
        os._exit(status)


def _die_with(life_fd: int) -> None:
    """Have the kernel kill this process when the pipe's other end is closed, whatever hangs here."""
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life_fd], [], [], 0.0)[0]:
        os.kill(os.getpid(), signal.SIGKILL)


def main_module() -> dict[str, Any]:
    """What a child must know to import the program's own module, as multiprocessing does: environments are registered
    there.
    """
    from multiprocessing.spawn import get_preparation_data

    data = get_preparation_data("worker")
    return {key: data[key] for key in ("init_main_from_name", "init_main_from_path") if key in data}


def import_main(data: dict[str, Any]) -> None:
    """In a child: import what `main_module` said there."""
    from multiprocessing.spawn import prepare

    prepare(data)


def _in_words(status: int | None) -> str:
    if status is None:
        return "ended, nobody knows how"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        return f"was killed by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
