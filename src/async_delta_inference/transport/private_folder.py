"""The folder of the sockets of one user's servers, which nobody else can enter."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

from async_delta_inference.errors import ConfigError

__all__ = ["FOLDER_VARIABLE", "MAX_SOCKET_PATH_BYTES", "check_socket_path", "is_answered", "private_folder"]

FOLDER_VARIABLE = "ASYNC_DELTA_RUNTIME_DIR"
"""Environment variable that overrides the folder; it must be the same for client and server."""

MAX_SOCKET_PATH_BYTES = 107
_PROBE_TIMEOUT_S = 1.0


def private_folder() -> Path:
    """The folder, made if it is not there.

    `FOLDER_VARIABLE` if set, else in ``$XDG_RUNTIME_DIR`` if that is there, else a folder of the user's in the
    temporary directory.

    Raises:
        ConfigError: It belongs to somebody else, others may write to it, or it cannot be made.
    """
    if chosen := os.environ.get(FOLDER_VARIABLE):
        folder = Path(chosen)
    elif (runtime := Path(os.environ.get("XDG_RUNTIME_DIR") or "nowhere")).is_absolute() and runtime.is_dir():
        folder = runtime / "async-delta-inference"
    else:
        folder = Path(tempfile.gettempdir()) / f"async-delta-inference-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as exc:
        raise ConfigError(f"cannot make the folder of the sockets, {folder}: {exc}. Set {FOLDER_VARIABLE}") from exc
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"{folder} must be a real folder of user {os.geteuid()} with mode 0700; it has mode "
            f"{stat.filemode(status.st_mode)} and belongs to user {status.st_uid}. "
            f"Correct it, or set {FOLDER_VARIABLE} to another folder"
        )
    return folder


def check_socket_path(path: Path) -> Path:
    """The path of a socket, if the system can take it.

    Raises:
        ConfigError: It is too long.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the socket path {path} is longer than the system's {MAX_SOCKET_PATH_BYTES} bytes: "
            f"set {FOLDER_VARIABLE} to a shorter folder"
        )
    return path


def is_answered(path: Path, kind: socket.SocketKind) -> bool:
    """Whether a live server listens at a Unix socket.

    Args:
        path: Of the socket.
        kind: What it carries: ``SOCK_STREAM`` or ``SOCK_SEQPACKET``.
    """
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # Its backlog is full, or it may not be asked: somebody is there.
    return True
