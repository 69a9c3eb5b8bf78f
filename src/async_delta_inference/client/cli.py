"""``async-delta-eval``: one evaluation from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.config_file import ConfigFile, read_config
from async_delta_inference.client.environments.plugins import known_environments
from async_delta_inference.client.evaluation import Evaluation
from async_delta_inference.client.flag_help import asks_for_help, environment_help, evaluation_help, named_environment
from async_delta_inference.client.lerobot_flags import ASYNCHRONOUS, in_our_words, is_lerobots, note_on_batch_size
from async_delta_inference.client.record.eval_info import EVAL_INFO_NAME
from async_delta_inference.client.record.events import RunStarted
from async_delta_inference.client.run.child_process import forks_allowed
from async_delta_inference.client.sim_client import SimClient
from async_delta_inference.command_line import EXIT_FAILED, parse_arguments, run_command
from async_delta_inference.standard_streams import unfailing

__all__ = ["main", "parse_evaluation"]

_PROGRAM = "async-delta-eval"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 for a user's mistake, 1 for another error or a result that could not be written, 130 when interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if asks_for_help(words):
        return run_command(lambda: _help(words))
    with forks_allowed():
        return run_command(lambda: _evaluate(parse_evaluation(words)))


def _help(arguments: Sequence[str]) -> int:
    name = named_environment(arguments)
    print(environment_help(_PROGRAM, known_environments(_PROGRAM), name) if name else evaluation_help(_PROGRAM), end="")
    return 0


def parse_evaluation(arguments: Sequence[str]) -> SimClientConfig:
    """The configuration that a command line of ``async-delta-eval``, or of lerobot-eval, is.

    Raises:
        ConfigError: A flag is unknown, missing, or cannot have that value.
        MissingExtraError: LeRobot is not installed.
    """
    file = read_config(arguments, _PROGRAM)
    ours = in_our_words(file.words, file.settings)
    _print_notes(file)
    EnvConfig = known_environments(_PROGRAM)  # noqa: N806 - the class

    @dataclass(kw_only=True)
    class Evaluation(SimClientConfig):
        """Evaluate a served policy in simulation."""

        env: EnvConfig  # type: ignore[valid-type]

    # draccus looks annotations up in the module.
    globals()["EnvConfig"] = EnvConfig
    return parse_arguments(Evaluation, ours, _PROGRAM, file.settings)


def _print_notes(file: ConfigFile) -> None:
    says_which = any(word.startswith(("--preset", "--clock", "--check")) for word in file.words)
    notes = list(file.notes)
    if is_lerobots(file.words) and not says_which and "clock" not in file.settings:
        notes.append(ASYNCHRONOUS)
    for note in [*notes, note_on_batch_size(file.words)]:
        if note:
            print(note, file=sys.stderr)


def _evaluate(config: SimClientConfig) -> int:
    if config.check:
        from async_delta_inference.client.checking import check

        return EXIT_FAILED if check(config, _console()) else 0
    if config.n_envs is not None:
        return _evaluate_in_workers(config)
    client = SimClient(config)
    try:
        client.start()
        _say(f"output in {client.output_dir}")
        client.control_loop()
    finally:
        try:
            client.stop()
        finally:
            _conclude(client)
    return EXIT_FAILED if client.unwritten else 0


def _evaluate_in_workers(config: SimClientConfig) -> int:
    from rich.console import Console

    from async_delta_inference.client.view.run_progress import RunProgress

    evaluation = Evaluation(config)
    progress = RunProgress(Console(file=unfailing(sys.stderr))) if config.progress else None
    try:
        for event in evaluation:
            if isinstance(event, RunStarted):
                _say(f"output in {evaluation.output_dir}")
                if progress is not None:
                    progress.take_up(evaluation.result.episodes)
            if progress is not None:
                progress(event)
    finally:
        if progress is not None:
            progress.stop()
        _conclude(evaluation)
    for given_up in evaluation.result.given_up:
        print(f"given up: {given_up.spec.name}: {given_up.failures[-1]}", file=sys.stderr)
    return EXIT_FAILED if evaluation.unwritten or evaluation.result.given_up else 0


def _conclude(run: SimClient | Evaluation) -> None:
    """The table, and where the results are."""
    from async_delta_inference.client.view.table import result_table

    if not run.result.episodes:
        return
    _console().print(result_table(run.result))
    over = f", over {run.result.spoken}" if run.result.spoken else ""
    _say(f"evaluated {run.result.policy}{over}")
    if (written := run.output_dir / EVAL_INFO_NAME) not in run.unwritten:
        _say(f"wrote {written}")


def _say(line: str) -> None:
    """As it is, on one line: it may be long, and brackets in it mean nothing."""
    _console().print(line, markup=False, soft_wrap=True)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
