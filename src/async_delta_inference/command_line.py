"""What both commands do with their arguments, their signals and their errors."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from async_delta_inference.errors import AsyncDeltaError, ConfigError

__all__ = ["parse_arguments", "run_command"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def run_command(command: Callable[[], int]) -> int:
    """Run a command and turn its end into an exit code, with one line for an error and never a traceback of ours.

    Args:
        command: Returns its exit code. SIGTERM reaches it as `KeyboardInterrupt`, so that it tidies up as for Ctrl-C.

    Returns:
        The command's code; 2 for a user's mistake, 1 for any other error of ours, 130 when interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    # pygame's, on every start: nothing that a user of ours could mend.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    try:
        return command()
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except AsyncDeltaError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse_arguments[ConfigT](config_class: type[ConfigT], arguments: Sequence[str] | None, program: str) -> ConfigT:
    """A configuration from the command line, with draccus as LeRobot does it.

    Raises:
        ConfigError: A flag is unknown, missing, or cannot have that value; one line.
        SystemExit: ``--help`` was printed.
    """
    from draccus.argparsing import ArgumentParser
    from draccus.utils import DraccusException

    parser = ArgumentParser(config_class=config_class, prog=program)
    # argparse would print its usage, two screens of it, and exit.
    parser.parser.error = _refuse
    try:
        config: ConfigT = parser.parse_args(None if arguments is None else list(arguments))
        return config
    except (DraccusException, TypeError, ValueError, KeyError) as exc:
        if isinstance(exc, AsyncDeltaError):
            raise
        raise ConfigError(_one_line(exc)) from exc


def _one_line(exc: BaseException) -> str:
    """The innermost reason, on one line, with where to look for the flags."""
    reason: BaseException = exc
    while reason.__cause__ is not None and not isinstance(reason, AsyncDeltaError):
        reason = reason.__cause__
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if isinstance(reason, AsyncDeltaError) else f"{text} (see --help for the flags)"


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message} (see --help for the flags)")


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
