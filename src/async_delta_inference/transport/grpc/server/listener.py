"""`GrpcListener`: the server half of ``grpc://``."""

from __future__ import annotations

import logging
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
from async_delta_inference.transport.grpc.server.admission import TokenCheck
from async_delta_inference.transport.grpc.server.connections import TcpConnections
from async_delta_inference.transport.grpc.server.native_service import NativeService
from async_delta_inference.transport.grpc.server.service import PolicyService
from async_delta_inference.transport.grpc.server.session import MAX_CALLS
from async_delta_inference.transport.grpc.server.silences import Silences
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.private_folder import check_socket_path, is_answered, private_folder
from async_delta_inference.transport.server import Listener, Reach

__all__ = ["GrpcListener"]

logger = logging.getLogger(__name__)

_STOP_GRACE_S = 1.0

_SPARE_CALLS = 16
"""That may be read at once besides one of every session."""

MESSAGE_TIMEOUT_S = 20.0
"""Within which a call must have said all that it wants: an observation over a slow line takes seconds."""


_KEEPALIVE_MS = 60_000
"""A client whose machine was switched off says nothing; one that does not answer this long is gone."""


class GrpcListener(Listener):
    """Serves our own clients, and those of LeRobot's protocol: unmodified RobotClients.

    ``link`` says which of the two, who may come, and whether they speak TLS.

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
        self._services: list[PolicyService | NativeService] = []
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
        if address.startswith("unix:") and path.is_socket() and not is_answered(path, socket.SOCK_STREAM):
            path.unlink(missing_ok=True)

    @property
    def uri(self) -> str:
        """See `Listener`; with the port that was bound."""
        return self._uri

    def start(self) -> None:
        """See `Listener`.

        Raises:
            ConfigError: The address is taken or no address; others could reach it and nothing keeps them out; or a
                certificate or the token cannot be read.
        """
        token = self.link.grpc.token()
        self._check_who_may_come(token)
        if self._is_served_already():
            raise ConfigError(f"a server is already listening at {self.address}: stop it, or take another path")
        most_silent = self.host.max_sessions + _SPARE_CALLS
        # Started when they are needed; so many that those who are silent leave some for those who speak.
        most_threads = self.host.max_sessions * MAX_CALLS + 2 * most_silent
        self._threads = ThreadPoolExecutor(most_threads, thread_name_prefix="grpc-listener")
        server = grpc.server(
            self._threads,
            interceptors=[] if token is None else [TokenCheck(token)],
            options=[
                # Without this a second server on the port is no error, and clients reach one of the two by chance.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        port = self._bind(server)
        self._silences = Silences(most_silent, MESSAGE_TIMEOUT_S)
        dialect = self.link.grpc.dialect
        if dialect != "lerobot":
            self._services.append(NativeService(self.host, self._silences))
        if dialect != "native":
            self._services.append(PolicyService(self.host, TcpConnections(port), self._silences))
        server.add_generic_rpc_handlers([service.handler() for service in self._services])
        server.start()
        self._server = server
        if not self.address.startswith("unix:"):
            self._uri = f"grpc://{self.address.rpartition(':')[0]}:{port}"

    def _bind(self, server: grpc.Server) -> int:
        tls = self.link.tls
        try:
            if not tls.is_used:
                return server.add_insecure_port(self.address)
            if tls.cert is None:
                raise ConfigError("a server that speaks TLS needs --tls.cert and --tls.key")
            pair = (tls.read("key") or b"", tls.read("cert") or b"")
            ca = tls.read("ca")
            credentials = grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)
            return server.add_secure_port(self.address, credentials)
        except (RuntimeError, ValueError) as exc:
            if isinstance(exc, ConfigError):
                raise
            what = (
                "is it taken, or not this machine's" if not tls.is_used else "is it taken, or are --tls's files not PEM"
            )
            raise ConfigError(f"cannot serve on {self.address}: {what}? ({exc})") from exc

    def _check_who_may_come(self, token: str | None) -> None:
        """Of an address that other machines may reach.

        Raises:
            ConfigError: Nothing keeps anybody out, and nobody said that this is meant.
        """
        tls = self.link.tls
        if is_loopback(self.address):
            return
        if token is None and not tls.is_used:
            if not self.link.insecure:
                raise ConfigError(
                    f"{self.address} can be reached from other machines, and whoever reaches it could use the policy "
                    "and name checkpoints of this machine to load: give --grpc.token_file or --tls.cert and --tls.key, "
                    "or say --insecure=true"
                )
            logger.warning("%s can be reached from other machines, and asks nobody who they are", self.address)
        elif not tls.is_used:
            logger.warning(
                "the token and all frames cross the network to %s in the clear: --tls hides them", self.address
            )

    def _is_served_already(self) -> bool:
        """Of a Unix socket: gRPC would take it over."""
        path = Path(self.address.removeprefix("unix:"))
        return self.address.startswith("unix:") and path.is_socket() and is_answered(path, socket.SOCK_STREAM)

    def stop(self) -> None:
        """See `Listener`."""
        with self._stop_lock:
            server, self._server = self._server, None
        if server is None or self._threads is None:
            return
        stopped = server.stop(_STOP_GRACE_S)
        for service in self._services:
            service.end_all("the server was stopped")
        stopped.wait()
        self._threads.shutdown()
        if self._silences is not None:
            self._silences.close()
