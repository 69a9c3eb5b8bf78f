"""What both commands do with their arguments, their signals and their errors."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from async_delta_inference.errors import AsyncDeltaError, ConfigError, MissingExtraError
from async_delta_inference.standard_streams import unfailing_output

__all__ = ["EXIT_FAILED", "parse_arguments", "run_command"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PATIENCE_S = 5.0
"""Within which a further signal does not interrupt the tidying that the first one began."""


def run_command(command: Callable[[], int]) -> int:
    """Run a command and turn its end into an exit code, with one line for an error and never a traceback of ours.

    Args:
        command: Returns its exit code. SIGTERM, SIGHUP and SIGQUIT reach it as `KeyboardInterrupt`, so that it tidies
            up as for Ctrl-C. What it prints never fails, whoever has stopped to read it.

    Returns:
        The command's code; 2 for a user's mistake, 1 for any other error of ours or of the operating system's (a full
        disk, a folder that must not be written to), 130 when interrupted.
    """
    # pygame's, on every start: nothing that a user of ours could mend.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    with unfailing_output(), _interruptible():
        return _exit_code(command)


def _exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except ConfigError as exc:
        _print_error(exc)
        return EXIT_USAGE
    except (AsyncDeltaError, OSError) as exc:
        _print_error(exc)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse_arguments[ConfigT](config_class: type[ConfigT], arguments: Sequence[str] | None, program: str) -> ConfigT:
    """A configuration from the command line, with draccus as LeRobot does it.

    Raises:
        ConfigError: A flag is unknown, missing, or cannot have that value; one line.
        MissingExtraError: The packages that read a command line are not installed.
        SystemExit: ``--help`` was printed.
    """
    try:
        from draccus.argparsing import ArgumentParser
        from draccus.utils import DraccusException
        from yaml import YAMLError
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", program) from exc

    parser = ArgumentParser(config_class=config_class, prog=program)
    # argparse would print its usage, two screens of it, and exit.
    parser.parser.error = _refuse
    try:
        config: ConfigT = parser.parse_args(None if arguments is None else list(arguments))
        return config
    # What draccus raises for a value, or a file named by --config_path, that it cannot read is not of one kind.
    except (DraccusException, YAMLError, OSError, AttributeError, TypeError, ValueError, KeyError) as exc:
        if isinstance(exc, AsyncDeltaError):
            raise
        raise ConfigError(_reason(exc)) from exc


def _reason(exc: BaseException) -> str:
    """The innermost reason, with the flag it is about and where to look for the flags."""
    reason: BaseException = exc
    flag = ""
    while not isinstance(reason, AsyncDeltaError):
        flag = ".".join(getattr(reason, "key_path", ())) or flag
        if reason.__cause__ is None:
            text = str(reason) or type(reason).__name__
            named = text if not flag or f"`{flag}`" in text else f"--{flag}: {text}"
            return f"{named} (see --help for the flags)"
        reason = reason.__cause__
    return str(reason)


def _print_error(exc: BaseException) -> None:
    """On one line: what a server or a library says may have many."""
    print(f"error: {' '.join(str(exc).split()) or type(exc).__name__}", file=sys.stderr)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message} (see --help for the flags)")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Signals that ask for an end are interrupts, unless whoever started the program had it ignore them (``nohup``)."""
    interrupt = _Interrupt()
    handlers = {number: signal.getsignal(number) for number in _INTERRUPTS}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        # Once interrupted, the process is about to end, and a further signal is none of the interpreter's business.
        if interrupt.came_s is None:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Interrupt:
    """A signal handler. Several signals in a row (a terminal that closes sends two, a user more) are one wish."""

    def __init__(self) -> None:
        self.came_s: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.came_s is None or now_s - self.came_s > _PATIENCE_S:
            self.came_s = now_s
            raise KeyboardInterrupt
