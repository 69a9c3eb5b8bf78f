"""What both commands do with their arguments, their signals and their errors."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from async_delta_inference.errors import AsyncDeltaError, ConfigError, MissingExtraError

__all__ = ["parse_arguments", "run_command"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def run_command(command: Callable[[], int]) -> int:
    """Run a command and turn its end into an exit code, with one line for an error and never a traceback of ours.

    Args:
        command: Returns its exit code. SIGTERM reaches it as `KeyboardInterrupt`, so that it tidies up as for Ctrl-C.

    Returns:
        The command's code; 2 for a user's mistake, 1 for any other error of ours or of the operating system's (a full
        disk, a folder that must not be written to), 130 when interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    # pygame's, on every start: nothing that a user of ours could mend.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
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


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
