"""`GrpcListener`: the server half of ``grpc://``."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import grpc
from lerobot.transport import services_pb2_grpc

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.addresses import check_host_and_port
from async_delta_inference.transport.grpc.server.connections import TcpConnections
from async_delta_inference.transport.grpc.server.service import PolicyService
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.server import Listener, Reach

__all__ = ["GrpcListener"]

_STOP_GRACE_S = 1.0

_CALLS_PER_SESSION = 4
_CALLS_OF_OTHERS = 32
"""Calls that are under way at once, each in a thread, which is started when it is needed: every session has one that
waits in ``GetActions``."""

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
        self._threads: ThreadPoolExecutor | None = None
        self._uri = f"grpc://{address}"

    @classmethod
    def default_address(cls) -> str:
        """See `Listener`."""
        return "127.0.0.1:8080"

    @classmethod
    def unused_address(cls) -> str:
        """See `Listener`."""
        return "127.0.0.1:0"

    @property
    def uri(self) -> str:
        """See `Listener`; with the port that was bound."""
        return self._uri

    def start(self) -> None:
        """See `Listener`."""
        self._threads = ThreadPoolExecutor(
            self.host.max_sessions * _CALLS_PER_SESSION + _CALLS_OF_OTHERS, thread_name_prefix="grpc-listener"
        )
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
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as exc:
            raise ConfigError(f"cannot serve on {self.address}: is it taken, or not this machine's? ({exc})") from exc
        self._service = PolicyService(self.host, TcpConnections(port))
        services_pb2_grpc.add_AsyncInferenceServicer_to_server(self._service, server)
        server.start()
        self._server = server
        if not self.address.startswith("unix:"):
            self._uri = f"grpc://{self.address.rpartition(':')[0]}:{port}"

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
