"""A run that was read again from its folder, and whether two of them ran the same episodes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from async_delta_inference.client.environments.episode import EpisodeKey, EpisodeSpec
from async_delta_inference.client.record.eval_info import EVAL_INFO_NAME
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.result_store import RESULTS_NAME, ResultStore
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.client.record.run_file import RUN_NAME, flat_flags, read_run
from async_delta_inference.errors import ConfigError

__all__ = [
    "FinishedRun",
    "FlagDifference",
    "check_comparable",
    "check_same_episodes",
    "check_same_start",
    "differing_flags",
    "read_finished",
]

_SAME = ("seed", "success_key")
"""Flags of which an episode's start or its success depend, besides the environment's."""
_NO_MATTER = (
    "output_dir",
    "overwrite",
    "resume",
    "progress",
    "trace",
    "n_videos",
    "stop_when",
    "baseline",
    "record_dataset",
    "n_envs",
    "check_repeatable",
    "max_retries",
    "episode_timeout_s",
    "display_data",
    "display_ip",
    "display_port",
    "display_save",
    "save_trajectories",
    "plot_latency",
)
"""Flags that change no episode and tell nobody anything: left out of the list of differences."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a run left.

    Args:
        folder: Where.
        described: ``run.yaml``.
        episodes: Those that have a result.
        given_up: How many have none, though they were tried.
        repeatable: Whether the same seed and actions gave the same there; None where nobody tried.
    """

    folder: Path
    described: Mapping[str, Any]
    episodes: Mapping[EpisodeKey, EpisodeResult]
    given_up: int
    repeatable: bool | None = None

    @property
    def flags(self) -> dict[str, Any]:
        """By their names on the command line; with ``checkpoint``, the fingerprint of the policy's files."""
        checkpoint = (self.described.get("checkpoint") or {}).get("sha256")
        return flat_flags(self.described["configuration"]) | {"checkpoint": checkpoint}


@dataclass(frozen=True, slots=True)
class FlagDifference:
    """A flag that two runs were given differently."""

    flag: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"--{self.flag}: {self.first} and {self.second}"


def read_finished(folder: Path) -> FinishedRun:
    """Read a run, complete or not.

    Raises:
        ConfigError: The folder holds none, or what cannot be read.
    """
    described = read_run(folder / RUN_NAME)
    store = ResultStore(OutputFolder(folder))
    store.load()
    if not store.episodes:
        raise ConfigError(f"{folder / RESULTS_NAME} has no episode: is it the output folder of a run that began?")
    return FinishedRun(folder, described, store.episodes, len(store.given_up), _repeatable(folder))


def _repeatable(folder: Path) -> bool | None:
    """As the run found out; a run that ended before it wrote that told nobody."""
    try:
        said = json.loads((folder / EVAL_INFO_NAME).read_text())["overall"]["async"]["repeatable"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return said if isinstance(said, bool) else None


def differing_flags(first: FinishedRun, second: FinishedRun) -> list[FlagDifference]:
    """Every flag that may explain a difference, and was not the same."""
    before, after = first.flags, second.flags
    return [
        FlagDifference(flag, before.get(flag), after.get(flag))
        for flag in sorted(before.keys() | after.keys())
        if flag not in _NO_MATTER and before.get(flag) != after.get(flag)
    ]


def check_comparable(first: FinishedRun, second: FinishedRun, allowed: Collection[str] = ()) -> None:
    """Refuse two runs whose flags give other episodes: other tasks, other starts, another success.

    Args:
        first: A run.
        second: The other.
        allowed: Flags that may differ all the same, such as ``env.observation_height``.

    Raises:
        ConfigError: Names the flag that differs.
    """
    for difference in differing_flags(first, second):
        of_episodes = difference.flag in _SAME or difference.flag.startswith("env.")
        if of_episodes and difference.flag not in allowed:
            raise ConfigError(
                f"not comparable: {first.folder} and {second.folder} differ in {difference}; if it changes no episode, "
                f"add --allow={difference.flag}"
            )


def check_same_episodes(first: FinishedRun, second: FinishedRun) -> None:
    """Refuse two runs that have no episode in common, or one that did not begin alike.

    Raises:
        ConfigError: Names the episode.
    """
    shared = first.episodes.keys() & second.episodes.keys()
    if not shared:
        raise ConfigError(f"not comparable: {first.folder} and {second.folder} have no episode in common")
    for key in sorted(shared):
        check_same_start(first.episodes[key].spec, second.episodes[key].spec)


def check_same_start(first: EpisodeSpec, second: EpisodeSpec) -> None:
    """Refuse a pair of episodes that did not begin alike.

    Raises:
        ConfigError: Says how each began.
    """
    if first != second:
        raise ConfigError(f"not comparable: {first.name} began differently: {first} and {second}")
