"""Hosts a PolicyServer on gRPC, as ``python -m lerobot.async_inference.policy_server`` does."""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
from lerobot.transport import services_pb2_grpc

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.addresses import check_host_and_port

__all__ = ["GrpcService"]

_STOP_GRACE_S = 1.0

_WORKERS = 8
"""Upstream has 4, which four waiting clients fill."""


class GrpcService:
    """A gRPC server around lerobot's own servicer.

    Args:
        policy_server: An ``AsyncInferenceServicer``, PolicyServer itself as a rule.
        address: ``host:port``, port 0 for any free one; or ``unix:/path``.

    Raises:
        ConfigError: It is neither.
    """

    def __init__(self, policy_server: Any, address: str) -> None:
        check_host_and_port(address, smallest_port=0)
        self._policy_server = policy_server
        self._address = address
        self._server: grpc.Server | None = None
        self.uri = f"grpc://{address}"

    def start(self) -> None:
        """Bind and serve; `uri` holds the port that was bound.

        Raises:
            ConfigError: The address cannot be bound.
        """
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=_WORKERS),
            # Without this a second server on the port is no error, and clients reach one of the two by chance.
            options=[("grpc.so_reuseport", 0)],
        )
        services_pb2_grpc.add_AsyncInferenceServicer_to_server(self._policy_server, server)
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as exc:
            raise ConfigError(f"cannot serve on {self._address}: is it taken, or not this machine's? ({exc})") from exc
        server.start()
        self._server = server
        if not self._address.startswith("unix:"):
            self.uri = f"grpc://{self._address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Stop serving; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(_STOP_GRACE_S).wait()
