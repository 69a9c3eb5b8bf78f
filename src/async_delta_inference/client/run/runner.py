"""`Runner`: an evaluation over workers, wherever they are, as a stream of events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.episode import EpisodeKey, EpisodeSpec
from async_delta_inference.client.record.events import (
    EpisodeEnded,
    EpisodeFailed,
    EpisodeGivenUp,
    Event,
    RunStarted,
)
from async_delta_inference.client.record.results import GivenUp
from async_delta_inference.client.run.first_look import say
from async_delta_inference.client.run.interrupts import interrupts_held
from async_delta_inference.client.run.own_servers import OwnServers
from async_delta_inference.client.run.plan import WorkList
from async_delta_inference.client.run.worker import Alarmed, Connect, Described, Failed, Ready
from async_delta_inference.client.run.worker_handle import WorkerHandle
from async_delta_inference.errors import (
    AsyncDeltaError,
    ConfigError,
    EpisodeError,
    FeatureMismatchError,
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
)
from async_delta_inference.transport import Computation, TransportOptions

__all__ = ["MissingOf", "Runner"]

_LOOK_S = 0.5
_LONGEST_END_S = 5.0
_ALL_BROKEN = 3
"""Episodes given up in the beginning, none complete: the simulator does not work here."""

_FATAL: dict[str, type[AsyncDeltaError]] = {
    "usage": ConfigError,
    "mismatch": FeatureMismatchError,
    "policy": PolicyError,
}
"""What no other attempt mends."""

MissingOf = Callable[[Sequence[EpisodeSpec]], list[EpisodeSpec]]


class Runner(ABC):
    """Hands episodes out to workers as they become free, and runs again what failed. A subclass has the workers.

    Args:
        config: Flags.
        output_dir: For logs and videos.
        missing_of: Told all episodes, says which are to be run, in order.
        delay: Inference delay in steps where an earlier run has measured it.
    """

    def __init__(
        self, config: SimClientConfig, output_dir: Path, missing_of: MissingOf, delay: int | None = None
    ) -> None:
        self._config = config
        self._output_dir = output_dir
        self._missing_of = missing_of
        self._delay = delay
        self._workers: list[WorkerHandle] = []
        self._servers: OwnServers | None = None
        self._work = WorkList(())
        self._failures: dict[EpisodeKey, list[str]] = {}
        self._completed = 0
        self._given_up = 0
        self._lost_in_a_row = 0
        self._server_failures = 0
        self._server_failed_s = 0.0
        self._next_connect_s = 0.0
        self._alarmed = False
        self._spoken: dict[str, None] = {}
        self.policy = ""
        """What is evaluated, in the server's words, once a worker has a session."""
        self.delays: tuple[int, ...] = ()
        """Inference delays in steps, once they are known."""
        self.computations: list[Computation] = []
        """How it is computed, as the servers say: all ways of them."""
        self.fps = 0.0
        """Control steps per second, once a worker has built its environments."""

    @property
    def spoken(self) -> str:
        """How observations travel, in words; all ways of them."""
        return "; ".join(self._spoken)

    # Where the workers are.

    @abstractmethod
    def _begin(self, stack: ExitStack) -> OwnServers | None:
        """Get ready for workers; returns the run's own servers, begun to load, unless it uses another one.

        Args:
            stack: Ends what was begun, after the workers.
        """

    @abstractmethod
    def _number_of_simulators(self, episodes: int) -> int:
        """How many workers there are to be for so many episodes."""

    @abstractmethod
    def _new_worker(self, index: int) -> WorkerHandle:
        """Start one."""

    @abstractmethod
    def _await(self, workers: Sequence[WorkerHandle], timeout_s: float) -> Sequence[WorkerHandle]:
        """Those that have said something or have ended, as soon as there is one."""

    @property
    @abstractmethod
    def _log(self) -> str:
        """Where workers say why they died."""

    def _is_overdue(self, worker: WorkerHandle) -> bool:
        return worker.overdue_s() > 0

    def _travels(self, worker: WorkerHandle, spoken: str) -> str:
        """How a worker's observations travel, in words, given what its transport says of that."""
        return spoken

    # What all of them have in common.

    def run(self) -> Iterator[Event]:
        """All of it.

        Raises:
            ConfigError: A flag cannot work, or environment and checkpoint do not fit.
            EpisodeError: No simulator works here.
            PolicyError: The policy raised.
            TransportError: The server cannot be reached, or dies again and again.
        """
        with ExitStack() as stack:
            self._servers = self._begin(stack)
            stack.callback(self._end_workers)
            self._start_worker(0)
            described = self._first_description()
            self.fps = described.fps
            missing = self._missing_of(described.episodes)
            self._completed = len(described.episodes) - len(missing)
            n_envs = self._number_of_simulators(len(missing))
            yield RunStarted(described.episodes, tuple(missing), n_envs)
            if not missing:
                return
            self._work = WorkList(missing)
            if self._servers is not None:
                self._servers.keep(n_envs)
                yield from self._servers.started()
            for index in range(1, n_envs):
                self._start_worker(index)
            while len(self._work) or any(worker.spec is not None for worker in self._workers):
                yield from self._turn()

    def _turn(self) -> Iterator[Event]:
        """Hand out what can be handed out, and wait for what comes."""
        if self._servers is not None:
            yield from self._servers.started()
        for worker in self._workers:
            self._employ(worker)
        # What a worker said before it died comes first.
        for worker in self._await(self._workers, _LOOK_S):
            yield from self._hear(worker)
        for worker in list(self._workers):
            if self._is_overdue(worker):
                worker.kill()
                yield from self._lost(worker, worker.lateness)

    def _employ(self, worker: WorkerHandle) -> None:
        """Give a worker that is free something to do."""
        if not worker.described or worker.spec is not None or worker.connecting:
            return
        if not worker.ready:
            self._connect(worker)
            return
        others = [other.built for other in self._workers if other is not worker and other.spec is not None]
        spec = self._work.take(worker.built, others)
        if spec is not None:
            worker.run(spec, self._config.episode_timeout_s)

    def _connect(self, worker: WorkerHandle) -> None:
        """Have it open a session, if it is time for that."""
        config = self._config
        # The first one measures the delay, if that is asked for; the others are told.
        measures = config.clock == "simulated" and config.inference_delay == "auto"
        if measures and not self.delays and worker is not self._workers[0]:
            return
        address = self._address_for(worker)
        if address is None or time.monotonic() < self._next_connect_s:
            return
        delay = self.delays[0] if self.delays else self._delay
        patience_s = config.connect_timeout_s + config.setup_timeout_s
        worker.connect(Connect(*address, delay), patience_s + config.inference_timeout_s)

    def _address_for(self, worker: WorkerHandle) -> tuple[str, TransportOptions] | None:
        if self._servers is not None:
            return self._servers.address_for(worker)
        return self._config.uri or "", self._config.transport_options()

    def _hear(self, worker: WorkerHandle) -> Iterator[Event]:
        for message in worker.messages():
            if isinstance(message, Failed):
                yield from self._failed(worker, message)
                return
            if isinstance(message, Described):
                worker.described = True
            elif isinstance(message, Ready):
                worker.ready, worker.connecting = True, False
                self.policy, self.delays = message.policy, message.delays
                if message.computation and message.computation not in self.computations:
                    self.computations.append(message.computation)
                if travels := self._travels(worker, message.spoken):
                    self._spoken[travels] = None
            elif isinstance(message, Alarmed):
                # Every worker looks, at an episode of its own; once is enough.
                say(() if self._alarmed else message.alarms)
                self._alarmed = True
            elif isinstance(message, EpisodeEnded):
                worker.spec = None
                self._completed += 1
                self._lost_in_a_row = self._server_failures = 0
                failures = tuple(self._failures.pop(message.result.spec.key, ()))
                yield replace(message, result=replace(message.result, failures=failures))
            else:
                yield message
        if worker.has_ended:
            yield from self._lost(worker, "")

    def _failed(self, worker: WorkerHandle, failed: Failed) -> Iterator[Event]:
        if failed.what in _FATAL:
            raise _FATAL[failed.what](failed.reason)
        if failed.what == "simulator":
            worker.kill()
            yield from self._lost(worker, failed.reason)
            return
        spec, worker.spec = worker.spec, None
        worker.ready = worker.connecting = False
        if spec is not None:
            # No fault of the episode's.
            self._work.put_back(spec)
            yield EpisodeFailed(worker.index, spec, failed.reason)
        self._mend_server(worker, failed.reason)

    def _mend_server(self, worker: WorkerHandle, reason: str) -> None:
        """The server failed: start it again where it is ours, else wait for it."""
        now_s = time.monotonic()
        if self._server_failures == 0:
            self._server_failed_s = now_s
        self._server_failures += 1
        if self._servers is None:
            if now_s - self._server_failed_s > self._config.reconnect_timeout_s:
                raise PeerUnreachableError(f"the server did not come back: {reason}")
            self._next_connect_s = now_s + _LOOK_S
            return
        # Every worker reports the same death.
        if self._server_failures > (self._config.max_retries + 1) * len(self._workers):
            raise PeerGoneError(f"the embedded server fails again and again: {reason} (see {self._servers.log})")
        self._servers.mend(worker)

    def _lost(self, worker: WorkerHandle, reason: str) -> Iterator[Event]:
        """A worker has ended: its episode is run again in a new one, or given up."""
        how = worker.reap()
        reason = reason or how
        self._workers.remove(worker)
        spec = worker.spec
        if spec is None:
            self._lost_in_a_row += 1
            if self._lost_in_a_row > self._config.max_retries:
                raise EpisodeError(f"no simulator can be started: {reason} (see {self._log})")
        else:
            failures = self._failures.setdefault(spec.key, [])
            failures.append(reason)
            if len(failures) <= self._config.max_retries:
                self._work.put_back(spec)
                yield EpisodeFailed(worker.index, spec, reason)
            else:
                yield from self._give_up(spec, tuple(failures))
        if len(self._work) > sum(w.spec is None for w in self._workers):
            self._start_worker(worker.index)

    def _give_up(self, spec: EpisodeSpec, failures: tuple[str, ...]) -> Iterator[Event]:
        self._given_up += 1
        yield EpisodeGivenUp(GivenUp(spec, failures))
        if self._given_up >= _ALL_BROKEN and not self._completed:
            raise EpisodeError(f"no episode can be run here; the last one: {spec.name}: {failures[-1]}")

    def _first_description(self) -> Described:
        (worker,) = self._workers
        while True:
            self._await(self._workers, _LOOK_S)
            for message in worker.messages():
                if isinstance(message, Described):
                    worker.described = True
                    return message
                if isinstance(message, Failed):
                    raise _FATAL.get(message.what, EpisodeError)(message.reason)
            if worker.has_ended:
                self._workers.remove(worker)
                raise EpisodeError(f"the first simulator did not start: {worker.reap()} (see {self._log})")
            if worker.overdue_s() > 0:
                raise EpisodeError(f"the first simulator {worker.lateness}")

    def _start_worker(self, index: int) -> None:
        self._workers.append(self._new_worker(index))

    def _end_workers(self) -> None:
        with interrupts_held():
            deadline_s = time.monotonic() + _LONGEST_END_S
            for worker in self._workers:
                worker.begin_to_end()
            for worker in self._workers:
                worker.end(max(0.0, deadline_s - time.monotonic()))
            self._workers.clear()
