"""`OwnServers`: the servers that a run starts for itself; `EmbeddedServers`: those of a run on this machine."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.record.events import ServerStarted
from async_delta_inference.client.run.embedded_server import MODULE, EmbeddedServer, flags_for_many
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

    def keep(self, count: int) -> None:  # noqa: B027 - where they are elsewhere they stay
        """There will be no more workers than these: end the servers that are more."""

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


@dataclass(slots=True, eq=False)
class _Seat:
    """One server, and those that take its place.

    Args:
        number: From 1.
        variables: Of its environment.
    """

    number: int
    variables: Mapping[str, str]
    server: EmbeddedServer | None = None
    uri: str | None = None
    """Once it is ready."""
    until_s: float = 0.0
    """When it must be, on the monotonic clock."""
    deaths: int = 0

    @property
    def log_name(self) -> str:
        """Of its log; the first one's is ``server.log``."""
        number = str(self.number) if self.number > 1 else ""
        return f"server{number}_{self.deaths}.log" if self.deaths else f"server{number}.log"


class EmbeddedServers(OwnServers):
    """Child processes of this one, to which the workers are dealt out by their index: a worker that is started again
    has the server that it had.

    Args:
        config: Flags.
        output_dir: For their logs.
        variables: Of each server's environment, besides this process's; as many as there are servers.
    """

    def __init__(
        self, config: SimClientConfig, output_dir: Path, variables: Sequence[Mapping[str, str]] = ({},)
    ) -> None:
        self._config = config
        self._output_dir = output_dir
        # A child that died does not come back, and nobody else can reach its socket.
        options = config.transport_options()
        self._options = replace(options, reconnect_timeout_s=0.0, link=LinkOptions(config.grpc))
        self._seats = [_Seat(number, own) for number, own in enumerate(variables, 1)]
        self._newest = self._seats[0]

    def start(self) -> None:
        """See `OwnServers`."""
        for seat in self._seats:
            self._start(seat)

    def started(self) -> Iterator[ServerStarted]:
        """See `OwnServers`; waits for the first one, since nobody can do anything without it."""
        loading = [(seat, seat.server) for seat in self._seats if seat.server is not None and seat.uri is None]
        patience_s = self._config.setup_timeout_s if len(loading) == len(self._seats) else 0.0
        spoken = wait([server.fileno() for _, server in loading], patience_s) if loading else ()
        for seat, server in loading:
            left_s = seat.until_s - time.monotonic()
            if server.fileno() in spoken or left_s <= 0:
                seat.uri = server.wait_until_ready(max(0.0, left_s))
                yield ServerStarted(seat.uri, sum(other.deaths for other in self._seats))

    def keep(self, count: int) -> None:
        """See `OwnServers`."""
        kept, surplus = self._seats[:count], self._seats[count:]
        self._seats = kept
        _end(surplus)

    def address_for(self, worker: WorkerHandle) -> tuple[str, TransportOptions] | None:
        """See `OwnServers`."""
        uri = self._seat_of(worker).uri
        return None if uri is None else (uri, self._options)

    def mend(self, worker: WorkerHandle) -> None:
        """See `OwnServers`. Every worker reports the same death."""
        seat = self._newest = self._seat_of(worker)
        if seat.server is not None and seat.uri is not None and seat.server.has_ended:
            seat.server.stop()
            seat.deaths += 1
            which = "the embedded server" if len(self._seats) == 1 else f"embedded server {seat.number}"
            logger.warning("%s died and is started again (%d. time)", which, seat.deaths)
            self._start(seat)

    @property
    def log(self) -> str:
        """See `OwnServers`."""
        return str(self._newest.server.log_path) if self._newest.server is not None else ""

    def stop(self) -> None:
        """See `OwnServers`."""
        _end(self._seats)

    def _start(self, seat: _Seat) -> None:
        config = self._config
        assert config.transport is not None  # resolved by the configuration
        seat.uri, seat.until_s = None, time.monotonic() + config.setup_timeout_s
        seat.server = EmbeddedServer(
            config.transport,
            self._output_dir / seat.log_name,
            policy_host=config.policy_host,
            flags=flags_for_many(config),
            module=MODULE,
            variables=seat.variables,
        )

    def _seat_of(self, worker: WorkerHandle) -> _Seat:
        return self._seats[worker.index % len(self._seats)]


def _end(seats: Sequence[_Seat]) -> None:
    """All at the same time, each also where another one cannot be ended."""
    servers = [seat.server for seat in seats if seat.server is not None]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        for server in servers:
            server.begin_to_stop()
