"""`start_child`: a module in a child process that ends with this one: forked where that is safe, else a new Python.

A new Python needs a quarter of a minute to load LeRobot, which a fork of a process that has loaded it does not. A fork
has only the thread that forked: what others held locked stays so in it. So a program has to ask for forks
(`forks_allowed`), and gets them only while it has one thread and CUDA would work in them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

__all__ = ["ASK_NVML", "Child", "can_fork", "forks_allowed", "start_child"]

ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable; 1: torch asks NVML whether there is a GPU. Else it asks CUDA's driver, and no process that is
forked afterwards can use a GPU. Packages that LeRobot loads ask while they are imported."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_allowed = False
_lifelines: set[int] = set()
"""This process's ends of the pipes that keep its children: no other process may hold them open."""


class Child(Protocol):
    """A child process."""

    @property
    def pid(self) -> int:
        """Its id."""

    def close_stdin(self) -> None:
        """End its standard input, which asks it to end; idempotent."""

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within that time."""


@contextmanager
def forks_allowed() -> Iterator[None]:
    """Within it, this process says that it may be forked: a command that has the process to itself does.

    What is loaded within it leaves CUDA usable in forks, see `ASK_NVML`.
    """
    global _allowed
    before, _allowed = _allowed, True
    given = os.environ.get(ASK_NVML)
    os.environ.setdefault(ASK_NVML, "1")
    try:
        yield
    finally:
        _allowed = before
        if given is None:
            os.environ.pop(ASK_NVML, None)


def can_fork(loaded: str) -> bool:
    """Whether a child is forked: allowed, safe, and worth it.

    Args:
        loaded: A package that takes long to load; where this process has not done so, nothing is gained.
    """
    return (
        _allowed
        and loaded in sys.modules
        and sys.platform == "linux"
        and threading.active_count() == 1
        and not _forks_lose_cuda()
    )


def _forks_lose_cuda() -> bool:
    """Whether there are GPUs that a fork could not use, since this process has talked to CUDA's driver.

    Not even a number of GPUs that was asked for survives a fork, and only a fork knows of it.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.device_count():
        return False
    return torch.cuda.is_initialized() or _is_so_in_a_fork(torch.cuda._is_in_bad_fork)


def _is_so_in_a_fork(question: Callable[[], bool]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # See `_ForkedChild`.
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if not question() else 1)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def start_child(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, keep: int, *, fork: bool
) -> Child:
    """Run ``python -m module`` with its output in a file, and its standard input a pipe that this process holds open.

    Args:
        module: To run.
        arguments: Of its command line.
        environment: All of its environment variables.
        log: The file that takes what it prints.
        keep: A file descriptor that it gets, under the same number.
        fork: Whether to fork this process; else it is a new Python.
    """
    return (_ForkedChild if fork else _NewPython)(module, arguments, environment, log, keep)


class _NewPython:
    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, keep: int
    ) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                # -P: a folder called datasets/ or a queue.py where the user works is none of the child's business.
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(keep,),
                # A Ctrl-C at the terminal is the parent's to handle: the child must outlive it by a moment.
                start_new_session=True,
                env=environment,
            )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        _lifelines.add(self._stdin.fileno())

    @property
    def pid(self) -> int:
        return self._process.pid

    def close_stdin(self) -> None:
        if not self._stdin.closed:
            _lifelines.discard(self._stdin.fileno())
            self._stdin.close()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


class _ForkedChild:
    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, keep: int
    ) -> None:
        stdin, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        try:
            with log.open("wb") as output, warnings.catch_warnings():
                # Python counts the threads of libraries, too; those of LeRobot's imports hold no lock of ours.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process = multiprocessing.get_context("fork").Process(
                    target=_run_forked,
                    args=(module, list(arguments), dict(environment), stdin, output.fileno(), keep),
                    daemon=True,
                )
                self._process.start()
        finally:
            os.close(stdin)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def close_stdin(self) -> None:
        if self._lifeline in _lifelines:
            _lifelines.discard(self._lifeline)
            os.close(self._lifeline)

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        self._process.join(timeout_s)
        return not self._process.is_alive()


def _close_lifelines() -> None:
    """In a child: its parent's ends are the parent's alone, or the children would keep each other."""
    for descriptor in _lifelines:
        os.close(descriptor)
    _lifelines.clear()


os.register_at_fork(after_in_child=_close_lifelines)


def _run_forked(
    module: str, arguments: list[str], environment: dict[str, str], stdin: int, output: int, keep: int
) -> None:
    """What a new Python would find: its own session, signals, streams, environment, path and command line."""
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor, standard in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, standard)
    os.set_inheritable(keep, True)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
    sys.argv[:] = [module, *arguments]
    _pin_threads()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _pin_threads() -> None:
    """Torch read the variable when it was loaded, in the parent's environment."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        torch.set_num_threads(int(threads))
