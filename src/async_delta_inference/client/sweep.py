"""`Sweep`: the same episodes with every combination of some flags' values, one run after another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from async_delta_inference.errors import ConfigError
from async_delta_inference.whole_files import write_whole

__all__ = ["Point", "Sweep", "split_grid"]

SWEEP_NAME = "sweep.json"
_SWEPT = "--sweep."
_NOT_SWEPT = (
    *("output_dir", "overwrite", "resume", "server_address", "transport", "policy_host", "max_batch", "num_servers"),
)
"""What a sweep chooses itself, and what its one server is told."""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination.

    Args:
        values: By flag, without its dashes, as text.
    """

    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of its folder."""
        text = ",".join(f"{flag}={value}" for flag, value in self.values.items())
        return re.sub(r"[^\w.,=+-]", "_", text) or "all"

    @property
    def arguments(self) -> list[str]:
        """As on the command line."""
        return [f"--{flag}={value}" for flag, value in self.values.items()]


def split_grid(words: Sequence[str]) -> tuple[list[Point], list[str]]:
    """The combinations that a command line asks for, the first flag slowest, and its other words.

    Args:
        words: Such as ``--sweep.inference_delay=0,2,4 --env.type=pusht``. A value with commas is written in a list:
            ``--sweep.env.task_ids=[0,1],[2]``.

    Raises:
        ConfigError: Nothing is swept, a flag has no values or is the sweep's own, or is given twice.
    """
    grid: dict[str, list[str]] = {}
    others = []
    for word in words:
        if not word.startswith(_SWEPT):
            others.append(word)
            continue
        flag, equals, text = word.removeprefix(_SWEPT).partition("=")
        values = re.findall(r"\[[^\]]*\]|[^,\[]+", text)
        if not equals or not flag or not values:
            raise ConfigError(f"{word}: write --sweep.FLAG=VALUE,VALUE,...")
        if flag in _NOT_SWEPT:
            raise ConfigError(f"{word}: a sweep has one {flag} for all its runs")
        if flag in grid or any(other.partition("=")[0] == f"--{flag}" for other in words):
            raise ConfigError(f"--{flag} is given twice: sweep it, or give it one value")
        if len(set(values)) < len(values):
            raise ConfigError(f"{word}: a value stands there twice")
        grid[flag] = values
    if not grid:
        raise ConfigError("nothing to sweep: give --sweep.FLAG=VALUE,VALUE,..., such as --sweep.inference_delay=0,2,4")
    return [Point(dict(zip(grid, values, strict=True))) for values in product(*grid.values())], others


class Sweep:
    """Which points of a grid have been run, in a folder.

    Args:
        folder: Has a folder of its own for every point.
        points: The grid.
        arguments: What all of them have in common.
    """

    def __init__(self, folder: Path, points: Sequence[Point], arguments: Sequence[str]) -> None:
        self.folder = folder
        self.points = list(points)
        self._arguments = list(arguments)
        self._complete: dict[str, list[str]] = {}

    def folder_of(self, point: Point) -> Path:
        """The output folder of a point's run."""
        return self.folder / point.name

    def load(self) -> None:
        """Take up what was run before.

        Raises:
            ConfigError: The file that says it cannot be read.
        """
        path = self.folder / SWEEP_NAME
        try:
            if path.exists():
                self._complete = dict(json.loads(path.read_text())["complete"])
        except (OSError, ValueError, LookupError, TypeError) as exc:
            raise ConfigError(f"{path} cannot be read: {exc}; remove it to run what is missing all the same") from exc

    def run(self, run_point: Callable[[Point, Path], None]) -> Iterator[Point]:
        """Run what is missing, point by point; yields each point when it is complete.

        Args:
            run_point: Runs a point into its folder, or what is missing of it there.
        """
        for point in self.points:
            # With other flags, or more episodes, a run goes on, or refuses to.
            if self._complete.get(point.name) != self._arguments:
                run_point(point, self.folder_of(point))
                self._complete[point.name] = self._arguments
                write_whole(self.folder / SWEEP_NAME, self._write)
            yield point

    def _write(self, path: Path) -> None:
        path.write_text(json.dumps({"complete": self._complete}, indent=2) + "\n")
