"""``results.jsonl``: one line an episode, on the disk before anybody is told that it ended."""

from __future__ import annotations

import os
from pathlib import Path

from async_delta_inference.client.environments.episode import EpisodeKey
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.result_line import episode_of, line_of, line_of_given_up
from async_delta_inference.client.record.results import EpisodeResult, GivenUp
from async_delta_inference.errors import ConfigError
from async_delta_inference.whole_files import write_whole

__all__ = ["RESULTS_NAME", "ResultStore"]

RESULTS_NAME = "results.jsonl"


class ResultStore:
    """The results of a run, in memory and in its folder.

    A line is appended and flushed to the disk; whatever ends the process, the lines before are whole. Where one cannot
    be written (a full disk, a folder that is gone), it is tried again with the next.

    Args:
        folder: Claimed. What is in it from an earlier run is replaced by the first line, unless `load` reads it.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._written = 0
        self._inode: tuple[int, int] | None = None
        self.episodes: dict[EpisodeKey, EpisodeResult] = {}
        """Those that have a result."""
        self.given_up: dict[EpisodeKey, GivenUp] = {}
        """Those that have none, though they were tried."""

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._folder.path / RESULTS_NAME

    def load(self) -> None:
        """Take up what an earlier run left. A last line that its end tore is dropped: its episode is run again.

        Raises:
            ConfigError: The file cannot be read, or has a line that is no episode's before the last.
        """
        try:
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        except OSError as exc:
            raise ConfigError(f"{self.path} cannot be read: {exc.strerror}") from exc
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break  # Only the last.
            try:
                self._take(episode_of(line.decode()))
            except (ConfigError, UnicodeDecodeError) as exc:
                if number == len(lines):
                    break
                raise ConfigError(f"{self.path}, line {number}: {exc}: remove it, or the folder") from exc
            self._lines.append(line)

    def keep(self, result: EpisodeResult) -> bool:
        """Write an episode's line; returns whether it is on the disk."""
        self._take(result)
        return self._append(line_of(result))

    def give_up(self, given_up: GivenUp) -> bool:
        """Write the line of an episode that has no result; returns whether it is on the disk."""
        self._take(given_up)
        return self._append(line_of_given_up(given_up))

    def flush(self) -> None:
        """Try once more what could not be written."""
        if self._lines and (self._written < len(self._lines) or self._inode != _inode_of(self.path)):
            self._folder.attempt(self.path, self._write_missing)

    def _take(self, outcome: EpisodeResult | GivenUp) -> None:
        key = outcome.spec.key
        self.given_up.pop(key, None)
        if isinstance(outcome, GivenUp):
            self.given_up[key] = outcome
        else:
            self.episodes[key] = outcome

    def _append(self, line: str) -> bool:
        self._lines.append(line.encode() + b"\n")
        return self._folder.attempt(self.path, self._write_missing)

    def _write_missing(self) -> None:
        if self._inode is None or self._inode != _inode_of(self.path):
            # The first line, or somebody removed the file: what is there before it is none of ours, or not whole.
            everything = b"".join(self._lines)
            write_whole(self.path, lambda path: path.write_bytes(everything))
            self._inode, self._written = _inode_of(self.path), len(self._lines)
            return
        good = sum(map(len, self._lines[: self._written]))
        with self.path.open("r+b", buffering=0) as file:
            file.truncate(good)  # Of a line that did not fit there may be a part.
            file.seek(good)
            _write_all(file.fileno(), b"".join(self._lines[self._written :]))
            os.fsync(file.fileno())
        self._written = len(self._lines)


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
