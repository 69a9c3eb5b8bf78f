"""`RayServers`: the policy servers of a run on a cluster, each an actor."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import ray
from ray.exceptions import GetTimeoutError, RayError

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.record.events import ServerStarted
from async_delta_inference.client.run.embedded_server import flags_for_many
from async_delta_inference.client.run.on_ray.actors import ServedAt, ServerActor, ServerSetup, Surroundings
from async_delta_inference.client.run.on_ray.ray_worker import RayWorker, in_short
from async_delta_inference.client.run.own_servers import OwnServers
from async_delta_inference.client.run.worker_handle import WorkerHandle
from async_delta_inference.errors import PeerUnreachableError
from async_delta_inference.transport import LinkOptions, TransportOptions
from async_delta_inference.transport.link_options import GrpcOptions
from async_delta_inference.transport.registry import backend, split_uri

__all__ = ["RayServers"]

logger = logging.getLogger(__name__)

MODULE = "async_delta_inference.server_adapter"
"""The program of a server."""
_WATCH_S = 2.0
_STOP_TIMEOUT_S = 15.0


@dataclass(slots=True, eq=False)
class _Seat:
    """One server and those that took its place."""

    index: int
    actor: Any = None
    ready: Any = None
    watch: Any = None
    since_s: float = 0.0
    served: ServedAt | None = None
    deaths: int = 0
    fruitless: int = 0
    """Deaths in a row before it was ready."""


class RayServers(OwnServers):
    """A worker uses the one on its node, over shared memory; else one elsewhere, over our own gRPC, with a token.

    Args:
        config: Flags.
        output_dir: For logs.
        count: How many.
        surroundings: Of this program, with the token.
    """

    def __init__(self, config: SimClientConfig, output_dir: Path, count: int, surroundings: Surroundings) -> None:
        self._config = config
        self._output_dir = output_dir
        self._surroundings = surroundings
        self._seats = [_Seat(index) for index in range(count)]
        self._within: set[str] = set()
        self._used: WeakKeyDictionary[WorkerHandle, _Seat] = WeakKeyDictionary()
        # A server that died does not come back at its address.
        grpc = GrpcOptions("native", config.grpc.image_encoding)
        options = replace(config.transport_options(), reconnect_timeout_s=0.0)
        self._options = replace(options, link=LinkOptions(grpc, config.tls))

    def start(self) -> None:
        """See `OwnServers`."""
        for seat in self._seats:
            self._start(seat)

    def started(self) -> Iterator[ServerStarted]:
        """See `OwnServers`."""
        for seat in self._seats:
            if seat.served is None:
                yield from self._look_whether_ready(seat)
            else:
                self._look_whether_dead(seat)

    def address_for(self, worker: WorkerHandle) -> tuple[str, TransportOptions] | None:
        """See `OwnServers`: of those on the worker's node, else of all, the one that the fewest use."""
        assert isinstance(worker, RayWorker)
        if any(seat.served is None and not seat.deaths for seat in self._seats):
            return None  # It may be on the worker's node.
        there = [seat for seat in self._seats if seat.served is not None]
        near = [seat for seat in there if seat.served is not None and seat.served.node == worker.node]
        seat = min(near or there, key=lambda seat: list(self._used.values()).count(seat), default=None)
        if seat is None or seat.served is None:
            return None
        self._used[worker] = seat
        return (seat.served.within if near else seat.served.between), self._options

    def travels(self, worker: RayWorker, spoken: str) -> str:
        """How a worker's observations travel, in words, given what its transport says of that."""
        seat = self._used.get(worker)
        near = seat is not None and seat.served is not None and seat.served.node == worker.node
        return f"{spoken or self._config.transport} {'within a node' if near else 'between nodes'}"

    @property
    def count(self) -> int:
        """How many there are to be."""
        return len(self._seats)

    @property
    def waited_for(self) -> list[Any]:
        """References that are there once `started` has something to look at."""
        return [seat.ready if seat.served is None else seat.watch for seat in self._seats]

    def mend(self, worker: WorkerHandle) -> None:
        """See `OwnServers`."""
        seat = self._used.pop(worker, None)
        if seat is not None and seat.served is not None:
            ray.wait([seat.watch], timeout=_WATCH_S)  # What a worker notices at once Ray may notice later.
            self._look_whether_dead(seat)

    @property
    def log(self) -> str:
        """See `OwnServers`."""
        return str(self._output_dir / "server*.log")

    def stop(self) -> None:
        """See `OwnServers`. In order, so that nothing stays on their nodes."""
        actors = [seat.actor for seat in self._seats if seat.actor is not None]
        stopping = [actor.stop.remote() for actor in actors]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_TIMEOUT_S)
        for actor in actors:
            ray.kill(actor)
        for seat in self._seats:
            seat.actor = None
        # Ray kills the children of an actor whose node goes, which then cannot tidy up. Elsewhere this finds nothing.
        for uri in self._within:
            scheme, address = split_uri(uri)
            backend(scheme).listener.remove_what_is_left(address)

    def _start(self, seat: _Seat) -> None:
        config, tls = self._config, self._config.tls
        assert config.transport is not None  # resolved by the configuration
        number = f"_{seat.index}" if len(self._seats) > 1 else ""
        again = f"_{seat.deaths}" if seat.deaths else ""
        flags = ["--grpc.dialect=native", *flags_for_many(config)]
        flags += [f"--tls.{name}={getattr(tls, name)}" for name in ("cert", "key", "ca") if getattr(tls, name)]
        log = self._output_dir / f"server{number}{again}.log"
        setup = ServerSetup(config.transport, config.policy_host, tuple(flags), log, MODULE)
        options: dict[str, Any] = {
            # One that is started again waits for nobody's core: the workers cannot go on without it.
            "num_cpus": 0 if seat.deaths else 1,
            "num_gpus": 1 if config.policy_device.startswith("cuda") else 0,
            "scheduling_strategy": "SPREAD" if len(self._seats) > 1 else "DEFAULT",
            "max_concurrency": 4,
        }
        seat.actor = ray.remote(ServerActor).options(**options).remote(self._surroundings, setup)
        seat.ready, seat.watch = seat.actor.wait_until_ready.remote(config.setup_timeout_s), None
        seat.served, seat.since_s = None, time.monotonic()

    def _look_whether_ready(self, seat: _Seat) -> Iterator[ServerStarted]:
        try:
            seat.served = ray.get(seat.ready, timeout=0.0)
        except GetTimeoutError:
            if time.monotonic() - seat.since_s > self._config.setup_timeout_s:
                needed = "GPU" if self._config.policy_device.startswith("cuda") else "CPU"
                raise PeerUnreachableError(
                    f"server {seat.index} was not ready within {self._config.setup_timeout_s:g} s; has the cluster a "
                    f"free {needed} for it?"
                ) from None
            return
        except RayError as exc:
            seat.fruitless += 1
            if seat.fruitless > self._config.max_retries or isinstance(exc, PeerUnreachableError):
                raise PeerUnreachableError(f"server {seat.index} cannot be started: {in_short(exc)}") from exc
            self._restart(seat, in_short(exc))
            return
        assert seat.served is not None
        seat.fruitless = 0
        self._within.add(seat.served.within)
        seat.watch = seat.actor.watch.remote(_WATCH_S)
        yield ServerStarted(seat.served.between, sum(other.deaths for other in self._seats))

    def _look_whether_dead(self, seat: _Seat) -> None:
        try:
            if not ray.get(seat.watch, timeout=0.0):
                seat.watch = seat.actor.watch.remote(_WATCH_S)
                return
            reason = "its process ended"
        except GetTimeoutError:
            return
        except RayError as exc:
            reason = in_short(exc)
        self._restart(seat, reason)

    def _restart(self, seat: _Seat, reason: str) -> None:
        with suppress(RayError):
            stopped = seat.actor.stop.remote()
            ray.wait([stopped], timeout=_STOP_TIMEOUT_S)
        ray.kill(seat.actor)
        seat.deaths += 1
        logger.warning("server %d died and is started again: %s", seat.index, reason)
        self._start(seat)
