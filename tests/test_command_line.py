"""What both commands do with arguments and errors: one line and an exit code, whatever went wrong."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from async_delta_inference.command_line import parse_arguments, run_command
from async_delta_inference.errors import AsyncDeltaError, ConfigError, MissingExtraError, SetupRefusedError


@pytest.fixture(autouse=True)
def handler_of_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@dataclass
class Flags:
    count: int = 1
    share: float | None = None
    path: Path | None = None


def raising(exc: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise exc

    return command


@pytest.mark.parametrize(
    ("exc", "code", "line"),
    [
        (ConfigError("no such flag"), 2, "error: no such flag"),
        (MissingExtraError("libero", "LIBERO"), 2, "error: LIBERO needs the extra 'libero'"),
        (SetupRefusedError("the server said:\n  no\n\n  really"), 1, "error: the server said: no really"),
        (AsyncDeltaError(), 1, "error: AsyncDeltaError"),
        (OSError(28, "No space left on device", "x/eval_info.json"), 1, "error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    exc: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(exc)) == code
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


def test_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--count=many", "--count"),
        ("--count=2.5", "--count"),
        ("--share=half", "--share"),
        ("--count=[1", "expected"),
        ("--count=@1", "'@'"),
        ("--config_path=nowhere.yaml", "nowhere.yaml"),
        ("--config_path=list.yaml", "list"),
        ("--cuont=1", "--cuont"),
    ],
)
def test_argument_that_cannot_be_read_is_refused_by_name(
    argument: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="--help") as info:
        parse_arguments(Flags, [argument], "program")
    assert named in str(info.value)


def test_arguments_and_a_file_make_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("count: 3\nshare: 0.5\n")
    flags = parse_arguments(Flags, [f"--config_path={tmp_path}/flags.yaml", "--count=4"], "program")
    assert (flags.count, flags.share) == (4, 0.5)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "draccus.argparsing", None)
    with pytest.raises(MissingExtraError, match=r"program needs the extra 'lerobot'"):
        parse_arguments(Flags, [], "program")
