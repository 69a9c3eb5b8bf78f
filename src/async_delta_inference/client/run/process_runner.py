"""`ProcessRunner`: an evaluation over worker processes of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from async_delta_inference.client.run.forking import Forker
from async_delta_inference.client.run.gpus import servers_variables
from async_delta_inference.client.run.interrupts import interrupts_held
from async_delta_inference.client.run.machine import number_of_simulators
from async_delta_inference.client.run.own_servers import EmbeddedServers, OwnServers
from async_delta_inference.client.run.runner import Runner
from async_delta_inference.client.run.worker import WorkerSetup
from async_delta_inference.client.run.worker_handle import WorkerHandle
from async_delta_inference.client.run.worker_process import WorkerProcess

__all__ = ["ProcessRunner"]


class ProcessRunner(Runner):
    """See `Runner`: each worker is a process, and so is each of the run's own servers."""

    def _begin(self, stack: ExitStack) -> OwnServers | None:
        servers = None if self._config.uri is not None else self._embedded_servers()
        if servers is not None:
            stack.callback(_held(servers.stop))
        self._forker = Forker(Path(self._log))
        stack.callback(_held(self._forker.stop))
        if servers is not None:
            servers.start()
        return servers

    def _embedded_servers(self) -> EmbeddedServers:
        # How many episodes there are is known once there is an environment, for which they load at the same time.
        variables = servers_variables(self._config, number_of_simulators(self._config, sys.maxsize))
        return EmbeddedServers(self._config, self._output_dir, variables)

    def _number_of_simulators(self, episodes: int) -> int:
        return number_of_simulators(self._config, episodes)

    def _new_worker(self, index: int) -> WorkerHandle:
        setup = WorkerSetup(index, self._config, self._output_dir)
        return WorkerProcess(self._forker, setup, self._config.setup_timeout_s)

    def _await(self, workers: Sequence[WorkerHandle], timeout_s: float) -> Sequence[WorkerHandle]:
        by_object: dict[Any, WorkerHandle] = {}
        for worker in workers:
            assert isinstance(worker, WorkerProcess)
            by_object |= dict.fromkeys(worker.waited_for, worker)
        found = {id(by_object[ready]): by_object[ready] for ready in wait(list(by_object), timeout_s)}
        return list(found.values())

    @property
    def _log(self) -> str:
        return str(self._output_dir / "workers.log")


def _held(end: Callable[[], None]) -> Callable[[], None]:
    def ended() -> None:
        with interrupts_held():
            end()

    return ended
