"""`ProcessRunner`: an evaluation over worker processes, as a stream of events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.episode import EpisodeKey, EpisodeSpec
from async_delta_inference.client.record.events import (
    EpisodeEnded,
    EpisodeFailed,
    EpisodeGivenUp,
    Event,
    RunStarted,
    ServerStarted,
)
from async_delta_inference.client.record.results import GivenUp
from async_delta_inference.client.run.embedded_server import EmbeddedServer, flags_for_many
from async_delta_inference.client.run.first_look import say
from async_delta_inference.client.run.forking import Forker
from async_delta_inference.client.run.interrupts import interrupts_held
from async_delta_inference.client.run.machine import number_of_simulators
from async_delta_inference.client.run.plan import WorkList
from async_delta_inference.client.run.worker import Alarmed, Connect, Described, Failed, Ready, WorkerSetup
from async_delta_inference.client.run.worker_process import WorkerProcess
from async_delta_inference.errors import (
    AsyncDeltaError,
    ConfigError,
    EpisodeError,
    FeatureMismatchError,
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
)
from async_delta_inference.transport import LinkOptions

__all__ = ["ProcessRunner"]

logger = logging.getLogger(__name__)

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


class ProcessRunner:
    """Hands episodes out to workers as they become free, and runs again what failed.

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
        self._workers: list[WorkerProcess] = []
        self._server: EmbeddedServer | None = None
        self._uri = config.uri or ""
        self._restarts = 0
        self._work = WorkList(())
        self._failures: dict[EpisodeKey, list[str]] = {}
        self._completed = 0
        self._given_up = 0
        self._lost_in_a_row = 0
        self._server_failures = 0
        self._server_failed_s = 0.0
        self._next_connect_s = 0.0
        self._alarmed = False
        self.policy = ""
        """What is evaluated, in the server's words, once a worker has a session."""
        self.spoken = ""
        """How observations travel, in words."""
        self.delays: tuple[int, ...] = ()
        """Inference delays in steps, once they are known."""
        self.fps = 0.0
        """Control steps per second, once a worker has built its environments."""

    def run(self) -> Iterator[Event]:
        """All of it.

        Raises:
            ConfigError: A flag cannot work, or environment and checkpoint do not fit.
            EpisodeError: No simulator works here.
            PolicyError: The policy raised.
            TransportError: The server cannot be reached, or dies again and again.
        """
        with ExitStack() as stack:
            stack.callback(self._end)
            self._forker = Forker(self._output_dir / "workers.log")
            stack.callback(self._end_forker)
            stack.callback(self._end_workers)
            if self._config.uri is None:
                self._start_server()
            self._start_worker(0)
            described = self._first_description()
            self.fps = described.fps
            missing = self._missing_of(described.episodes)
            self._completed = len(described.episodes) - len(missing)
            n_envs = number_of_simulators(self._config, len(missing))
            yield RunStarted(described.episodes, tuple(missing), n_envs)
            if not missing:
                return
            self._work = WorkList(missing)
            if self._server is not None:
                self._uri = self._server.wait_until_ready(self._config.setup_timeout_s)
                yield ServerStarted(self._uri, 0)
            for index in range(1, n_envs):
                self._start_worker(index)
            while len(self._work) or any(worker.spec is not None for worker in self._workers):
                yield from self._turn()

    def _turn(self) -> Iterator[Event]:
        """Hand out what can be handed out, and wait for what comes."""
        for worker in self._workers:
            self._employ(worker)
        by_object: dict[Any, WorkerProcess] = {}
        for worker in self._workers:
            by_object[worker.process.connection] = worker
            by_object[worker.process.handle] = worker
        ready = wait(list(by_object), _LOOK_S)
        # What a worker said before it died comes first.
        for worker in {id(by_object[found]): by_object[found] for found in ready}.values():
            yield from self._hear(worker)
        for worker in list(self._workers):
            if worker.overdue_s() > 0:
                worker.process.kill()
                worker.process.wait(_LONGEST_END_S)
                doing = "took no step" if worker.spec is not None else "did not get ready"
                yield from self._lost(worker, f"{doing} for {worker.timeout_s:g} s")

    def _employ(self, worker: WorkerProcess) -> None:
        """Give a worker that is free something to do."""
        if not worker.described or worker.spec is not None or worker.connecting:
            return
        if not worker.ready:
            # The first one measures the delay, if that is asked for; the others are told.
            measures = self._config.clock == "simulated" and self._config.inference_delay == "auto"
            if (self.delays or not measures or worker is self._workers[0]) and time.monotonic() >= self._next_connect_s:
                delay = self.delays[0] if self.delays else self._delay
                options = self._config.transport_options()
                if self._server is not None:
                    # A child that died does not come back, and nobody else can reach its socket.
                    options = replace(options, reconnect_timeout_s=0.0, link=LinkOptions(self._config.grpc))
                patience_s = self._config.connect_timeout_s + self._config.setup_timeout_s
                worker.connect(Connect(self._uri, options, delay), patience_s + self._config.inference_timeout_s)
            return
        others = [other.built for other in self._workers if other is not worker and other.spec is not None]
        spec = self._work.take(worker.built, others)
        if spec is not None:
            worker.run(spec, self._config.episode_timeout_s)

    def _hear(self, worker: WorkerProcess) -> Iterator[Event]:
        while worker.process.connection.poll(0.0):
            message = worker.receive()
            if message is None:
                break
            if isinstance(message, Failed):
                yield from self._failed(worker, message)
                return
            if isinstance(message, Described):
                worker.described = True
            elif isinstance(message, Ready):
                worker.ready, worker.connecting = True, False
                self.policy, self.spoken, self.delays = message.policy, message.spoken, message.delays
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
        if worker.process.wait(0.0):
            yield from self._lost(worker, "")

    def _failed(self, worker: WorkerProcess, failed: Failed) -> Iterator[Event]:
        if failed.what in _FATAL:
            raise _FATAL[failed.what](failed.reason)
        if failed.what == "simulator":
            worker.process.kill()
            worker.process.wait(_LONGEST_END_S)
            yield from self._lost(worker, failed.reason)
            return
        spec, worker.spec = worker.spec, None
        worker.ready = worker.connecting = False
        if spec is not None:
            # No fault of the episode's.
            self._work.put_back(spec)
            yield EpisodeFailed(worker.index, spec, failed.reason)
        yield from self._mend_server(failed.reason)

    def _mend_server(self, reason: str) -> Iterator[Event]:
        """The server failed: start it again where it is ours, else wait for it."""
        now_s = time.monotonic()
        if self._server_failures == 0:
            self._server_failed_s = now_s
        self._server_failures += 1
        if self._server is None:
            if now_s - self._server_failed_s > self._config.reconnect_timeout_s:
                raise PeerUnreachableError(f"the server did not come back: {reason}")
            self._next_connect_s = now_s + _LOOK_S
            return
        # Every worker reports the same death.
        if self._server_failures > (self._config.max_retries + 1) * len(self._workers):
            raise PeerGoneError(f"the embedded server fails again and again: {reason} (see {self._server.log_path})")
        if self._server.has_ended:
            self._server.stop()
            self._restarts += 1
            logger.warning("the embedded server died and is started again (%d. time)", self._restarts)
            self._start_server()
            self._uri = self._server.wait_until_ready(self._config.setup_timeout_s)
            yield ServerStarted(self._uri, self._restarts)

    def _lost(self, worker: WorkerProcess, reason: str) -> Iterator[Event]:
        """A worker has ended: its episode is run again in a new one, or given up."""
        how = worker.process.reap()
        reason = reason or f"its process {how}"
        self._workers.remove(worker)
        spec = worker.spec
        if spec is None:
            self._lost_in_a_row += 1
            if self._lost_in_a_row > self._config.max_retries:
                raise EpisodeError(f"no simulator can be started: {reason} (see {self._output_dir / 'workers.log'})")
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
            wait([worker.process.connection, worker.process.handle], _LOOK_S)
            if worker.process.connection.poll(0.0):
                message = worker.receive()
                if isinstance(message, Described):
                    worker.described = True
                    return message
                if isinstance(message, Failed):
                    raise _FATAL.get(message.what, EpisodeError)(message.reason)
            if worker.process.wait(0.0):
                self._workers.remove(worker)
                how = worker.process.reap()
                raise EpisodeError(f"the first simulator's process {how} (see {self._output_dir / 'workers.log'})")
            if worker.overdue_s() > 0:
                raise EpisodeError(f"the environments were not there within {worker.timeout_s:g} s")

    def _start_worker(self, index: int) -> None:
        setup = WorkerSetup(index, self._config, self._output_dir)
        self._workers.append(WorkerProcess(self._forker, setup, self._config.setup_timeout_s))

    def _start_server(self) -> None:
        assert self._config.transport is not None  # resolved by the configuration
        name = "server.log" if not self._restarts else f"server_{self._restarts}.log"
        self._server = EmbeddedServer(
            self._config.transport,
            self._output_dir / name,
            policy_host=self._config.policy_host,
            flags=flags_for_many(self._config),
        )

    def _end_workers(self) -> None:
        with interrupts_held():
            deadline_s = time.monotonic() + _LONGEST_END_S
            for worker in self._workers:
                if worker.spec is not None:  # In the middle of an episode that nobody waits for.
                    worker.process.kill()
            for worker in self._workers:
                worker.end(lambda: max(0.0, deadline_s - time.monotonic()))
            self._workers.clear()

    def _end_forker(self) -> None:
        with interrupts_held():
            self._forker.stop()

    def _end(self) -> None:
        with interrupts_held():
            if self._server is not None:
                self._server.stop()
