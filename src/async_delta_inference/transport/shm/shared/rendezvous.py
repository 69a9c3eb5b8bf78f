"""Where client and server meet: a Unix socket in a folder that only the user can enter."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from async_delta_inference.errors import ConfigError, PeerUnreachableError
from async_delta_inference.transport.private_folder import (
    FOLDER_VARIABLE,
    check_socket_path,
    is_answered,
    private_folder,
)
from async_delta_inference.transport.shm.shared.segment import sweep

__all__ = [
    "FOLDER_VARIABLE",
    "connect",
    "listen",
    "remove_if_stale",
    "rendezvous_folder",
    "server_key",
    "socket_path",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RETRY_S = 0.05
_LOCK_TIMEOUT_S = 5.0
_BACKLOG = 16


def rendezvous_folder() -> Path:
    """The folder of the sockets, made if it is not there; see `private_folder`.

    Raises:
        ConfigError: It belongs to somebody else, others may write to it, or it cannot be made.
    """
    if sys.platform != "linux":
        raise ConfigError("the shared-memory transport needs Linux: use --transport=grpc here")
    return private_folder()


def socket_path(name: str) -> Path:
    """The socket of ``shm://name``.

    Raises:
        ConfigError: Not a name, or the folder cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for shared memory: take 1 to 64 letters, digits, '.', '_' or '-', as in shm://policy"
        )
    return check_socket_path(rendezvous_folder() / f"{name}.sock")


def server_key(path: Path) -> str:
    """Names the server at this socket in /dev/shm; both sides derive it."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def listen(path: Path) -> socket.socket:
    """Bind the socket, taking it over from a server that was killed.

    Raises:
        ConfigError: A live server has it, or something that is not a socket is in its place.
    """
    with _folder_lock(path.parent):
        if _exists(path) and is_answered(path, socket.SOCK_SEQPACKET):
            raise ConfigError(f"a server is already listening at {path}: stop it, or take another name")
        _remove_stale_sockets(path.parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError as exc:
            listener.close()
            raise ConfigError(f"cannot listen at {path}: {exc}") from exc
    return listener


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connection to the server at ``path``, for whose start this waits.

    Raises:
        PeerUnreachableError: Nobody listens there within ``timeout_s``; or it is no socket, or not the user's.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            if not path.is_symlink():
                sock.settimeout(max(_RETRY_S, deadline_s - time.monotonic()))
                sock.connect(os.fspath(path))
                return sock
            failure: OSError = OSError(errno.ELOOP, "it is a symbolic link")
        except OSError as exc:
            failure = exc
        except BaseException:
            sock.close()
            raise
        sock.close()
        # Not there yet, not listening yet, or so busy that its backlog is full.
        later = isinstance(failure, (FileNotFoundError, ConnectionRefusedError, BlockingIOError)) and not _foreign(path)
        if not later or time.monotonic() >= deadline_s:
            raise PeerUnreachableError(
                f"no server answers at shm://{path.stem} ({path}: {failure.strerror or failure}): is it running? "
                f"Start one with: async-delta-serve --transport=shm --server_address=shm://{path.stem}"
            ) from failure
        time.sleep(_RETRY_S)


def remove_if_stale(path: Path) -> bool:
    """Remove the socket of a server that was killed, and its names in /dev/shm; True if it did so.

    What belongs to a live server is left alone.
    """
    with _folder_lock(path.parent):
        if not path.is_socket() or path.is_symlink() or is_answered(path, socket.SOCK_SEQPACKET):
            return False
        path.unlink(missing_ok=True)
        sweep(server_key(path))
        return True


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time looks at a socket and acts on what it saw. The system frees the lock of a killed one.

    Raises:
        ConfigError: Somebody holds it for seconds: a stopped process, or one that has no business there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline_s:
                raise ConfigError(f"another process keeps {folder} locked: is one of yours stopped?")
            time.sleep(_RETRY_S)
        yield
    finally:
        # A process that another thread forked meanwhile has the descriptor, too: closing this one would not free it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale_sockets(folder: Path) -> None:
    """Servers that were killed leave theirs, and what is in /dev/shm. An embedded server's name never comes again."""
    for path in folder.glob("*.sock"):
        if path.is_socket() and not path.is_symlink() and not is_answered(path, socket.SOCK_SEQPACKET):
            path.unlink(missing_ok=True)  # A server that stops removes its own, with no lock.
            sweep(server_key(path))


def _exists(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is not a socket but {stat.filemode(mode)}: remove it, or take another name")
    return True


def _foreign(path: Path) -> bool:
    """Whether something that is not a socket is in its place: waiting will not help."""
    try:
        return not stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False
