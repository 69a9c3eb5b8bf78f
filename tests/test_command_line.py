"""What both commands do with arguments and errors: one line and an exit code, whatever went wrong."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import draccus
import pytest

from async_delta_inference.command_line import parse_arguments, run_command
from async_delta_inference.errors import AsyncDeltaError, ConfigError, MissingExtraError, SetupRefusedError


@pytest.fixture(autouse=True)
def handler_of_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@dataclass
class Arm(draccus.ChoiceRegistry):
    pass


@Arm.register_subclass("left")
@dataclass
class Left(Arm):
    task: str | None = None
    name: int = 3


@Arm.register_subclass("right")
@dataclass
class Right(Arm):
    name: str = ""


@dataclass
class Flags:
    count: int = 1
    share: float | None = None
    path: Path | None = None
    text: str = ""
    some_text: str | None = None
    steps: int | None = 7
    ids: list[int] | None = None
    arm: Arm = field(default_factory=lambda: Left())


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


def test_what_nobody_expected_is_one_line_too_and_its_traceback_is_in_the_file_that_it_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_command(raising(ZeroDivisionError("by\nzero"))) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ZeroDivisionError: by zero (not expected; the traceback is in ")
    assert error.count("\n") == 1
    (file,) = tmp_path.iterdir()
    assert str(file) in error
    assert "in raising" in file.read_text() or "in command" in file.read_text()


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--count=many", "--count"),
        ("--count=2.5", "--count"),
        ("--share=half", "--share"),
        ("--count=null", "--count"),
        ("--count=true", "--count"),
        ("--count=[1", "'[1'"),
        ("--ids=[1", "expected"),
        ("--ids=@1", "'@'"),
        ("--path=~nobody_of_that_name/x", "--path"),
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


WORDS = ["Task: pick up the cube", "open drawer #2", "yes", "020000", "20251125_170917", "[::1]:8080", "null", "", "~"]
WORDS += ["include this", "{a: 1}", "'quoted'", "1e3", "0x10", "- a", "@1", "naïve ☂", " spaces ", "*", "&a", "%", "!"]


@pytest.mark.parametrize("words", WORDS)
def test_text_is_taken_word_for_word(words: str) -> None:
    given = [f"--{flag}={words}" for flag in ("text", "some_text", "arm.task")]
    flags = parse_arguments(Flags, ["--arm.type=left", *given], "program")
    assert isinstance(flags.arm, Left)
    assert (flags.text, flags.some_text, flags.arm.task) == (words, words, words)


@pytest.mark.parametrize("words", ["20251125_170917", "020000", "a #b", "yes", "null"])
def test_a_path_is_taken_word_for_word(words: str) -> None:
    assert parse_arguments(Flags, [f"--path={words}"], "program").path == Path(words)


def test_home_is_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flags.yaml").write_text("count: 3\n")
    flags = parse_arguments(Flags, ["--path=~/results", "--config_path=~/flags.yaml"], "program")
    assert (flags.path, flags.count) == (tmp_path / "results", 3)


def test_the_chosen_class_decides_what_is_text() -> None:
    assert parse_arguments(Flags, ["--arm.type=right", "--arm.name=012"], "program").arm == Right("012")
    assert parse_arguments(Flags, ["--arm.type=left", "--arm.name=012"], "program").arm == Left(None, 12)


def test_a_number_of_the_chosen_class_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--arm\.name must be a whole number, got 'many'"):
        parse_arguments(Flags, ["--arm.type=left", "--arm.name=many"], "program")


def test_numbers_are_numbers_and_the_rest_is_yaml() -> None:
    flags = parse_arguments(Flags, ["--count=010", "--share=1e-3", "--steps=null", "--ids=[1, 2]"], "program")
    assert (flags.count, flags.share, flags.steps, flags.ids) == (10, 0.001, None, [1, 2])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["--share=2", "--help"],
        ["--help", "--steps=2"],
        ["--nonsense", "--help"],
        ["--ids=[1", "-h"],
    ],
)
def test_help_is_given_whatever_stands_beside_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(Flags, arguments, "program")
    assert ended.value.code in (0, None)
    assert "--steps" in capsys.readouterr().out
