"""``--trace``: where the time of a run's chunks went, client's and embedded server's stages in one file."""

from __future__ import annotations

import logging
from pathlib import Path

from async_delta_inference import stages
from async_delta_inference.errors import ConfigError
from async_delta_inference.stage_trace import read_marks, write_trace
from async_delta_inference.whole_files import why_not

__all__ = ["StageTraceFile"]

logger = logging.getLogger(__name__)


class StageTraceFile:
    """Records from its making until `finish`.

    A server that was there before the run knows nothing of this: its own ``--trace`` records its part.

    Args:
        path: The file to write.

    Raises:
        ConfigError: Its folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._finished = False
        self.unwritten: dict[Path, str] = {}
        """The file and why it could not be written, after `finish`; empty where it was."""
        try:
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"--trace={path} cannot be written: {exc}") from exc
        self.server_path = path.with_name(path.name + ".server")
        """Where an embedded server leaves its part."""
        stages.start()

    def finish(self) -> None:
        """Write the file, once the server has ended; idempotent."""
        if self._finished:
            return
        self._finished = True
        marks = stages.take()
        stages.stop()
        try:
            if self.server_path.is_file():
                marks += read_marks(self.server_path)
                self.server_path.unlink()
            write_trace(self._path, marks)
        except (OSError, ValueError, LookupError) as exc:
            # The evaluation is over and its results are written: this is no reason to lose them.
            self.unwritten[self._path] = why_not(exc)
            logger.error("not written: %s: %s", self._path, why_not(exc))
