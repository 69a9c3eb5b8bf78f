"""`OwnServers`: the servers that a run starts for itself; `EmbeddedServers`: the one of a run on this machine."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.record.events import ServerStarted
from async_delta_inference.client.run.embedded_server import EmbeddedServer, flags_for_many
from async_delta_inference.client.run.worker_handle import WorkerHandle
from async_delta_inference.transport import LinkOptions, TransportOptions

__all__ = ["EmbeddedServers", "OwnServers"]

logger = logging.getLogger(__name__)


class OwnServers(ABC):
    """Servers of the run's own, which it starts again when they die."""

    @abstractmethod
    def start(self) -> None:
        """Have them begin to load; waits for nothing."""

    @abstractmethod
    def started(self) -> Iterator[ServerStarted]:
        """Those that have become ready since this was asked last.

        Raises:
            PeerUnreachableError: One does not get ready.
        """

    @abstractmethod
    def address_for(self, worker: WorkerHandle) -> tuple[str, TransportOptions] | None:
        """Where a worker is to connect to, and with which deadlines; None: there is no server yet."""

    @abstractmethod
    def mend(self, worker: WorkerHandle) -> None:
        """A worker's server failed: start it again where it has died."""

    @property
    @abstractmethod
    def log(self) -> str:
        """Where the newest of them says why it died."""

    @abstractmethod
    def stop(self) -> None:
        """End them all; idempotent."""


class EmbeddedServers(OwnServers):
    """One, a child process of this one.

    Args:
        config: Flags.
        output_dir: For its log.
    """

    def __init__(self, config: SimClientConfig, output_dir: Path) -> None:
        self._config = config
        self._output_dir = output_dir
        # A child that died does not come back, and nobody else can reach its socket.
        options = config.transport_options()
        self._options = replace(options, reconnect_timeout_s=0.0, link=LinkOptions(config.grpc))
        self._server: EmbeddedServer | None = None
        self._uri: str | None = None
        self._restarts = 0

    def start(self) -> None:
        """See `OwnServers`."""
        assert self._config.transport is not None  # resolved by the configuration
        name = "server.log" if not self._restarts else f"server_{self._restarts}.log"
        self._uri = None
        self._server = EmbeddedServer(
            self._config.transport,
            self._output_dir / name,
            policy_host=self._config.policy_host,
            flags=flags_for_many(self._config),
        )

    def started(self) -> Iterator[ServerStarted]:
        """See `OwnServers`; waits for it, since nobody can do anything without it."""
        if self._uri is None and self._server is not None:
            self._uri = self._server.wait_until_ready(self._config.setup_timeout_s)
            yield ServerStarted(self._uri, self._restarts)

    def address_for(self, worker: WorkerHandle) -> tuple[str, TransportOptions] | None:
        """See `OwnServers`."""
        return None if self._uri is None else (self._uri, self._options)

    def mend(self, worker: WorkerHandle) -> None:
        """See `OwnServers`. Every worker reports the same death."""
        if self._server is not None and self._uri is not None and self._server.has_ended:
            self._server.stop()
            self._restarts += 1
            logger.warning("the embedded server died and is started again (%d. time)", self._restarts)
            self.start()

    @property
    def log(self) -> str:
        """See `OwnServers`."""
        return str(self._server.log_path) if self._server is not None else ""

    def stop(self) -> None:
        """See `OwnServers`."""
        if self._server is not None:
            self._server.stop()
