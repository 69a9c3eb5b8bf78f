"""``async-delta-compare``: whether two runs of the same episodes differ by more than luck."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from async_delta_inference.client.compare.comparison import Comparison, compare_runs
from async_delta_inference.client.compare.runs import (
    FinishedRun,
    check_comparable,
    check_same_episodes,
    differing_flags,
    read_finished,
)
from async_delta_inference.client.record.eval_info import without_nan
from async_delta_inference.command_line import refuse, run_command
from async_delta_inference.errors import ConfigError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, whatever the comparison says; 2 for a user's mistake, runs that are not comparable among them.
    """
    return run_command(lambda: _compare(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="async-delta-compare", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="output folders of two runs of the same episodes"
    )
    parser.add_argument(
        "--difference", type=float, default=10.0, help="points of success for which to say how many episodes tell it"
    )
    parser.add_argument("--allow", default="", help="flags that may differ though they are the environment's: a,b")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_args(list(arguments))
    if len(parsed.runs) != 2:
        raise ConfigError(
            f"give the output folders of two runs of the same episodes, as async-delta-compare RUN RUN; got "
            f"{len(parsed.runs)}: {' '.join(map(str, parsed.runs)) or 'none'}"
        )
    if not 0 < parsed.difference <= 100:
        raise ConfigError(f"--difference must be above 0 and at most 100 percentage points, got {parsed.difference:g}")
    return parsed


def _compare(args: Namespace) -> int:
    first, second = map(read_finished, args.runs)
    check_comparable(first, second, args.allow.split(","))
    check_same_episodes(first, second)
    comparison = compare_runs(first, second)
    if args.json:
        print(json.dumps(without_nan(asdict(comparison)), indent=2, allow_nan=False))
    else:
        _show(first, second, comparison, args.difference / 100)
    return 0


def _show(first: FinishedRun, second: FinishedRun, comparison: Comparison, difference: float) -> None:
    from rich.console import Console

    from async_delta_inference.client.view.comparison_table import (
        NOT_REPEATABLE,
        figure_table,
        success_table,
        verdict,
    )

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for name, run in (("first", first), ("second", second)):
        console.print(f"{name}: {run.folder}, {len(run.episodes)} episodes", markup=False, soft_wrap=True)
    for flag in differing_flags(first, second):
        console.print(f"differs: {flag}", markup=False, soft_wrap=True)
    if comparison.unpaired or first.given_up or second.given_up:
        console.print(
            f"left out: {comparison.unpaired} episodes that only one run has ({first.given_up} and {second.given_up} "
            "were given up)"
        )
    if comparison.repeatable is False:
        console.print(NOT_REPEATABLE, soft_wrap=True)
    console.print(success_table(comparison))
    console.print(figure_table(comparison))
    console.print(verdict(comparison, difference), soft_wrap=True)
    if any(run.flags.get("stop_when") for run in (first, second)):
        console.print(
            f"A run was ended by --stop_when: McNemar's p does not hold for it. Sequential p = "
            f"{comparison.sequential_p_value:.3g}",
            soft_wrap=True,
        )
