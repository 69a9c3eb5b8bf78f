"""`OutputFolder`: the folder that a run writes into, its own for as long as it goes on."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import count
from pathlib import Path

from async_delta_inference.client.record.folder_lock import FolderLock
from async_delta_inference.errors import ConfigError
from async_delta_inference.whole_files import why_not, write_whole

__all__ = ["OutputFolder", "default_output_dir"]

logger = logging.getLogger(__name__)

_REPLACED = ("eval_info.json", "inference_delays.json", "results.jsonl")
"""What every run writes, and so replaces: until then an earlier run's is better than none."""
_REMOVED = (
    "queue_size.png",
    "latency.png",
    "trajectories/[0-9][0-9][0-9][0-9][0-9]*_*.npz",
    "videos/*/eval_episode_*.mp4",
)
"""What a run may leave besides that and its log. Anything else in the folder is the user's."""
_LEFTOVERS = (".*.partial.*", "trajectories/.*.partial.*", "videos/*/.*.partial.*")
"""What a run leaves that was killed."""


def default_output_dir(env_type: str, policy_type: str) -> Path:
    """``outputs/eval/<date>/<time>_<env>_<policy>``."""
    now = datetime.now()
    return Path("outputs/eval") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{env_type}_{policy_type}"


class OutputFolder:
    """Nothing is written but whole files, and none of them ends a run that it cannot be written for.

    Args:
        path: Where.
        unique: Whether `claim` takes another name when this one is taken: a default, and not a name of the user's.
    """

    def __init__(self, path: Path, *, unique: bool = False) -> None:
        self.path = path
        """Settled once it was claimed."""
        self.unwritten: dict[Path, str] = {}
        """Files that are not there as they should be, and why; what was there before them is."""
        self.holds_results = False
        """Whether it held those of an earlier run when it was claimed."""
        self._unique = unique
        self._lock: FolderLock | None = None
        self._claimed_ns = 0

    def claim(self, *, overwrite: bool = False, resume: bool = False) -> None:
        """Make the folder before a run, not after it, and keep others out of it until `release`.

        Args:
            overwrite: Whether it may hold the results of an earlier run, which `clear` removes.
            resume: Whether it may hold them since this run goes on with that one.

        Raises:
            ConfigError: It cannot be made or written to, another run uses it, or it holds results.
        """
        try:
            self.path = _make_unique(self.path) if self._unique else self.path
            holder = self._take()
        except OSError as exc:
            self.release()
            raise ConfigError(f"--output_dir={self.path} cannot be written to: {exc.strerror or exc}") from exc
        if holder:
            raise ConfigError(
                f"--output_dir={self.path} is in use by another run, {holder}: give another --output_dir, or wait"
            )
        found = next(self._matching(_REPLACED + _REMOVED), None)
        self.holds_results = found is not None
        assert self._lock is not None
        self._claimed_ns = self._lock.taken_ns
        if found is not None and not overwrite and not resume:
            self.release()
            raise ConfigError(
                f"--output_dir={self.path} holds the results of an earlier run ({found.relative_to(self.path)}): give "
                "another --output_dir, --resume=true to run what is missing, or --overwrite=true to replace them"
            )

    def write(self, name: str | Path, write: Callable[[Path], object]) -> bool:
        """Write a file whole; where that fails, say so on one line, keep what was there, and let the run go on.

        Args:
            name: Within the folder.
            write: Writes the file at the path that it is given.

        Returns:
            Whether it was written.
        """
        path = self.path / name
        return self.attempt(path, lambda: write_whole(path, write))

    def attempt(self, path: Path, action: Callable[[], object]) -> bool:
        """Do something for a file; where that fails, say so on one line, and let the run go on.

        Args:
            path: In the folder.
            action: Writes it.

        Returns:
            Whether it could be done.
        """
        try:
            if self._lock is not None and (holder := self._take()):
                raise OSError(errno.EBUSY, f"the folder was removed, and another run uses it, {holder}")
            action()
        # Encoders and plotters raise what they like, and none of it is worth the episodes that are still to come.
        except Exception as exc:  # noqa: BLE001
            reason = why_not(exc)
            if self.unwritten.get(path) != reason:
                logger.error("not written: %s: %s", path, reason)
            self.unwritten[path] = reason
            return False
        self.unwritten.pop(path, None)
        return True

    def clear(self) -> None:
        """Remove the results of an earlier run, of before `claim`, that would stand among those of this one."""
        for path in list(self._matching(_REMOVED + _LEFTOVERS)):
            try:
                if path.stat().st_mtime_ns <= self._claimed_ns:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError as exc:
                logger.error("an earlier run's %s is still there: %s", path, why_not(exc))

    def release(self) -> None:
        """Let others use it; idempotent."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take(self) -> str:
        """Have the folder and its lock, also after somebody removed them; returns who else has it, if so."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FolderLock(self.path)
        return self._lock.take()

    def _matching(self, patterns: tuple[str, ...]) -> Iterator[Path]:
        return (path for pattern in patterns for path in self.path.glob(pattern))


def _make_unique(path: Path) -> Path:
    """A new folder of this name, or of this name and a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there is always another number")
