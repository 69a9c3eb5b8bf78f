"""`GrpcListener`: the server half of ``grpc://``."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import ClassVar

import grpc

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.addresses import check_host_and_port, is_loopback
from async_delta_inference.transport.grpc.server.connections import TcpConnections
from async_delta_inference.transport.grpc.server.service import PolicyService
from async_delta_inference.transport.grpc.server.session import MAX_CALLS
from async_delta_inference.transport.grpc.server.silences import Silences
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.private_folder import check_socket_path, private_folder
from async_delta_inference.transport.server import Listener, Reach

__all__ = ["GrpcListener"]

logger = logging.getLogger(__name__)

_STOP_GRACE_S = 1.0

_SPARE_CALLS = 16
"""That may be read at once besides one of every session."""

MESSAGE_TIMEOUT_S = 20.0
"""Within which a call must have said all that it wants: an observation over a slow line takes seconds."""

_PROBE_TIMEOUT_S = 1.0

_KEEPALIVE_MS = 60_000
"""A client whose machine was switched off says nothing; one that does not answer this long is gone."""


class GrpcListener(Listener):
    """Serves clients of LeRobot's protocol: unmodified RobotClients, and our own.

    Args:
        address: ``host:port``, port 0 for any free one; or ``unix:/path``.
        host: Where the sessions go.

    Raises:
        ConfigError: The address is neither.
    """

    reach: ClassVar[Reach] = "network"

    def __init__(self, address: str, host: SessionHost) -> None:
        check_host_and_port(address, smallest_port=0)
        super().__init__(address, host)
        self._stop_lock = threading.Lock()
        self._server: grpc.Server | None = None
        self._service: PolicyService | None = None
        self._silences: Silences | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._uri = f"grpc://{address}"

    @classmethod
    def default_address(cls) -> str:
        """See `Listener`."""
        return "127.0.0.1:8080"

    @classmethod
    def unused_address(cls) -> str:
        """See `Listener`."""
        if sys.platform != "linux":
            return "127.0.0.1:0"
        # Every user of this machine can reach a port.
        return f"unix:{check_socket_path(private_folder() / f'grpc-{token_hex(6)}.sock')}"

    @classmethod
    def remove_what_is_left(cls, address: str) -> None:
        """See `Listener`."""
        path = Path(address.removeprefix("unix:"))
        if address.startswith("unix:") and path.is_socket() and not _answers(path):
            path.unlink(missing_ok=True)

    @property
    def uri(self) -> str:
        """See `Listener`; with the port that was bound."""
        return self._uri

    def start(self) -> None:
        """See `Listener`."""
        most_silent = self.host.max_sessions + _SPARE_CALLS
        # Started when they are needed; so many that those who are silent leave some for those who speak.
        most_threads = self.host.max_sessions * MAX_CALLS + 2 * most_silent
        self._threads = ThreadPoolExecutor(most_threads, thread_name_prefix="grpc-listener")
        server = grpc.server(
            self._threads,
            options=[
                # Without this a second server on the port is no error, and clients reach one of the two by chance.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        if self._is_served_already():
            raise ConfigError(f"a server is already listening at {self.address}: stop it, or take another path")
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as exc:
            raise ConfigError(f"cannot serve on {self.address}: is it taken, or not this machine's? ({exc})") from exc
        self._silences = Silences(most_silent, MESSAGE_TIMEOUT_S)
        self._service = PolicyService(self.host, TcpConnections(port), self._silences)
        server.add_generic_rpc_handlers([self._service.handler()])
        server.start()
        self._server = server
        if not self.address.startswith("unix:"):
            self._uri = f"grpc://{self.address.rpartition(':')[0]}:{port}"
        if not is_loopback(self.address):
            logger.warning(
                "%s can be reached from other machines, and asks nobody for a password: whoever reaches it can use the "
                "policy, and name checkpoints of this machine to load",
                self._uri,
            )

    def _is_served_already(self) -> bool:
        """Of a Unix socket: gRPC would take it over."""
        path = Path(self.address.removeprefix("unix:"))
        return self.address.startswith("unix:") and path.is_socket() and _answers(path)

    def stop(self) -> None:
        """See `Listener`."""
        with self._stop_lock:
            server, self._server = self._server, None
        if server is None or self._service is None or self._threads is None:
            return
        stopped = server.stop(_STOP_GRACE_S)
        self._service.end_all("the server was stopped")
        stopped.wait()
        self._threads.shutdown()
        if self._silences is not None:
            self._silences.close()


def _answers(path: Path) -> bool:
    """Whether a server listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # Its backlog is full, or it may not be asked: somebody is there.
    return True
