"""`FolderLock`: says that a folder is in use, for exactly as long as the process that uses it lives."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from io import FileIO
from pathlib import Path

__all__ = ["FolderLock"]

logger = logging.getLogger(__name__)

_NAME = ".in_use"
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


class FolderLock:
    """A lock on a file in the folder, which the system frees when its holder ends, however it does.

    On a file and not on the folder: NFS locks nothing that is not open for writing.

    Args:
        folder: It is there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._file: FileIO | None = None
        self.taken_ns = 0
        """When it was taken, by the clock of the file system."""

    def take(self) -> str:
        """Take it, if nobody has it; it may be this lock's already.

        Returns:
            Who has it, in words; empty: we do.

        Raises:
            OSError: The folder cannot be written to.
        """
        while not self._is_ours():
            self.release()
            self._file = self._path.open("a+b", buffering=0)
            if not self._try_lock():
                self._file.seek(0)
                holder = self._file.read(200).decode(errors="replace").strip()
                self._file.close()
                self._file = None
                return holder or "another process"
        return ""

    def release(self) -> None:
        """Free the folder, and leave nothing in it; idempotent."""
        if self._file is None:
            return
        with self._file:
            if self._is_ours():
                self._path.unlink(missing_ok=True)
            self._file = None

    def _try_lock(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno not in _CANNOT_LOCK:
                raise
            logger.warning("%s is on a file system without locks: two runs in it would not notice", self._path.parent)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self.taken_ns = os.fstat(self._file.fileno()).st_mtime_ns
        return True

    def _is_ours(self) -> bool:
        """Whether the file that we locked is the one that stands there: its holder removes it, as may anybody."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            return False
