"""`SemaphoreBell`: what every client of a server rings after it has published, so that one wait serves all sessions."""

from __future__ import annotations

import os
from contextlib import suppress

import posix_ipc
from posix_ipc import BusyError, SignalError

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.shm.shared.segment import SHM_FOLDER, bell_name

__all__ = ["SemaphoreBell"]


class SemaphoreBell:
    """A named semaphore, there as long as its server is. A `Bell`.

    A ring says no more than "look at the sessions": rings too many cost a look, and one that a client failed to give is
    made up for when the wait ends by itself.

    Args:
        server: The server's key, see `rendezvous.server_key`.

    Raises:
        ConfigError: It cannot be made.
    """

    def __init__(self, server: str) -> None:
        self._names = [bell_name(server)]
        try:
            self._semaphore = posix_ipc.Semaphore(self._names[0], posix_ipc.O_CREX, mode=0o600, initial_value=0)
        except (OSError, posix_ipc.Error) as exc:
            raise ConfigError(
                f"cannot make a semaphore in {SHM_FOLDER}: {exc}. Mount it writable, or use --transport=grpc"
            ) from exc
        self._acquire = self._semaphore.acquire
        self.ring = self._semaphore.release

    def hang_at(self, server: str) -> None:
        """Let the clients of another socket of this process ring it, too.

        Raises:
            ConfigError: It cannot be done.
        """
        name = bell_name(server)
        try:
            os.link(_path_of(self._names[0]), _path_of(name))
        except OSError as exc:
            raise ConfigError(f"cannot name the server's semaphore {name}: {exc}") from exc
        self._names.append(name)

    def wait(self, timeout_s: float) -> None:
        """See `Bell`."""
        try:
            self._acquire(timeout_s)
        except (BusyError, SignalError):
            return

    def take_down(self, server: str) -> None:
        """Remove the name that `hang_at` or the constructor gave it for this server; idempotent."""
        name = bell_name(server)
        if name in self._names:
            self._names.remove(name)
            with suppress(OSError, posix_ipc.Error):
                posix_ipc.unlink_semaphore(name)

    def close(self) -> None:
        """Let go of the semaphore, once nobody waits for it; idempotent."""
        semaphore, self._semaphore = self._semaphore, None
        if semaphore is not None:
            semaphore.close()


def _path_of(name: str) -> str:
    return f"{SHM_FOLDER}/sem.{name.removeprefix('/')}"
