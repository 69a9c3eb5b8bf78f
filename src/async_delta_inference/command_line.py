"""What both commands do with their arguments, their signals and their errors."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from traceback import format_exception
from types import FrameType
from typing import Any, NoReturn

from async_delta_inference.errors import AsyncDeltaError, ConfigError, MissingExtraError
from async_delta_inference.flag_values import flag_types, home_expanded, plain_value
from async_delta_inference.standard_streams import unfailing_output

__all__ = ["EXIT_FAILED", "command_parser", "parse_arguments", "read_config_file", "refuse", "run_command"]

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
        disk, a folder that must not be written to) or what nobody expected, whose traceback is kept in a file that the
        line names, 130 when interrupted.
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
    except Exception as exc:  # noqa: BLE001 - the last resort: a bug of ours, or of somebody's whose code runs here
        _print_error(exc, f"{type(exc).__name__}: ", f" (not expected; the traceback is in {_kept_traceback(exc)})")
        return EXIT_FAILED


def _kept_traceback(exc: BaseException) -> str:
    """Write it to a file of its own; its name."""
    try:
        with NamedTemporaryFile("w", prefix="async-delta-traceback-", suffix=".txt", delete=False) as file:
            file.writelines(format_exception(exc))
            return file.name
    except OSError as failed:
        return f"no file: {failed}"


def parse_arguments[ConfigT](
    config_class: type[ConfigT],
    arguments: Sequence[str] | None,
    program: str,
    file: Mapping[str, Any] | None = None,
) -> ConfigT:
    """A configuration from the command line, with draccus as LeRobot does it.

    Args:
        config_class: A dataclass.
        arguments: The command line; None: this process's.
        program: The command's name.
        file: What a file of flags says, as `read_config_file` reads it; a flag that is given counts instead.

    Raises:
        ConfigError: A flag is unknown, missing, or cannot have that value; one line.
        MissingExtraError: The packages that read a command line are not installed.
        SystemExit: ``--help`` was printed.
    """
    try:
        parser = _parser(config_class, program, file or {})
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", program) from exc

    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in given):
        given = ["--help"]  # Whatever stands beside it, right or wrong.
    parser.parser.error = refuse
    with _one_line():
        config: ConfigT = parser.parse_args(given)
        return config


def read_config_file(path: str, program: str) -> dict[str, Any]:
    """What the file says that ``--config_path`` names: YAML, JSON or TOML, by its name's ending.

    Raises:
        ConfigError: It cannot be read.
        MissingExtraError: The packages that read it are not installed.
    """
    try:
        from draccus import cfgparsing
        from draccus.utils import CONFIG_ARG
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", program) from exc
    with _one_line():
        file = home_expanded(CONFIG_ARG, path)
        with file.open(encoding="utf-8") as stream:
            found = cfgparsing.load_config(stream, file=file)
        if not isinstance(found, dict):
            raise TypeError(f"--{CONFIG_ARG}={path} holds a {type(found).__name__}, not flags and their values")
        return found


@contextmanager
def _one_line() -> Iterator[None]:
    """What draccus raises for a value or a file that it cannot read is not of one kind."""
    from draccus.utils import DraccusException
    from yaml import YAMLError

    try:
        yield
    except (DraccusException, YAMLError, OSError, AttributeError, TypeError, ValueError, KeyError) as exc:
        if isinstance(exc, AsyncDeltaError):
            raise
        raise ConfigError(_reason(exc)) from exc


def _parser(config_class: type, program: str, file: Mapping[str, Any]) -> Any:
    """As draccus parses, for which every value is YAML, but for what has a plain form."""
    import mergedeep
    from draccus import cfgparsing
    from draccus.argparsing import ArgumentParser as DraccusParser
    from draccus.parsers.decoding import decode
    from draccus.utils import CONFIG_ARG, deflatten

    class Parser(DraccusParser):  # type: ignore[misc]
        def _postprocessing(self, parsed_args: Namespace) -> Any:
            given: dict[str, str] = vars(parsed_args)
            named = read_config_file(given.pop(CONFIG_ARG), program) if CONFIG_ARG in given else {}
            settings = mergedeep.merge({}, file, named)
            inner = {name: value for name, value in settings.items() if isinstance(value, dict)}
            chosen = {f"{name}.type": str(value["type"]) for name, value in inner.items() if "type" in value} | given
            values: dict[str, Any] = {}
            for flag, text in given.items():
                values[flag] = plain_value(flag, text, flag_types(config_class, flag, chosen))
                if values[flag] is NotImplemented:
                    values[flag] = cfgparsing.parse_string(text)
            return decode(config_class, mergedeep.merge(settings, deflatten(values, sep=".")))

    return Parser(config_class=config_class, prog=program)


def command_parser(config_class: type[Any], program: str) -> ArgumentParser:
    """What argparse knows of a configuration's flags, to print it.

    Raises:
        MissingExtraError: The packages that read a command line are not installed.
    """
    try:
        parser: ArgumentParser = _parser(config_class, program, {}).parser
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", program) from exc
    return parser


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


def _print_error(exc: BaseException, before: str = "", after: str = "") -> None:
    """On one line: what a server or a library says may have many."""
    text = " ".join(f"{before}{exc}".split()).rstrip(":") or type(exc).__name__
    print(f"error: {text}{after}", file=sys.stderr)


def refuse(message: str) -> NoReturn:
    """Instead of argparse's ``error``, which would print its usage and exit.

    Raises:
        ConfigError: Always.
    """
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
