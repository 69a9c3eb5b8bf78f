"""`RayRunner`: an evaluation over the nodes of a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import ray

from async_delta_inference.client.run.forking import main_module
from async_delta_inference.client.run.interrupts import interrupts_held
from async_delta_inference.client.run.machine import cores, number_of_simulators, simulator_bytes
from async_delta_inference.client.run.on_ray.actors import Need, Surroundings, WorkerActor
from async_delta_inference.client.run.on_ray.cluster import check_nodes, joined_cluster, living_nodes
from async_delta_inference.client.run.on_ray.ray_servers import RayServers
from async_delta_inference.client.run.on_ray.ray_worker import RayWorker
from async_delta_inference.client.run.own_servers import OwnServers
from async_delta_inference.client.run.runner import Runner
from async_delta_inference.client.run.worker import WorkerSetup
from async_delta_inference.client.run.worker_handle import WorkerHandle
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.addresses import is_loopback
from async_delta_inference.transport.link_options import TOKEN_VARIABLE
from async_delta_inference.transport.registry import backend, split_uri

__all__ = ["RayRunner"]

logger = logging.getLogger(__name__)

_HANDED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MUJOCO_GL", "HF_HUB_OFFLINE")
"""Variables of the environment that results, or whether there are any, depend on."""


class RayRunner(Runner):
    """See `Runner`: each worker is an actor, and so is each of the run's own servers."""

    def _begin(self, stack: ExitStack) -> OwnServers | None:
        config = self._config
        servers = config.servers_wanted or 1 if config.uri is None else 0
        stack.enter_context(joined_cluster(config.ray_address, self._cpus(servers), config.connect_timeout_s))
        self._nodes = living_nodes()
        self._surroundings = _surroundings(own_servers=config.uri is None)
        check_nodes(self._nodes, self._needs(), self._surroundings.path)
        if config.uri is not None:
            self._check_reach(config.uri)
            self._own_servers = None
            return None
        if (
            config.tls.cert is None
            and len(self._nodes) > 1
            and not all(is_loopback(n.host + ":0") for n in self._nodes)
        ):
            logger.warning(
                "frames, and the run's token, cross the network between nodes in the clear: --tls hides them"
            )
        count = config.servers_wanted or self._one_for_each_gpu()
        self._own_servers = RayServers(config, self._output_dir, count, self._surroundings)
        stack.callback(self._stop_servers)
        self._own_servers.start()
        return self._own_servers

    def _number_of_simulators(self, episodes: int) -> int:
        servers = 0 if self._own_servers is None else self._own_servers.count
        per_simulator = simulator_bytes(self._config)
        room = -servers
        for node in self._nodes:
            room += min(node.cpus, node.memory_bytes // per_simulator) if node.memory_bytes else node.cpus
        if self._config.n_envs == "auto":
            return max(1, min(room, episodes))
        wanted = min(int(self._config.n_envs or 1), episodes)
        if wanted > sum(node.cpus for node in self._nodes) - servers:
            logger.warning("the cluster has no CPU for each of %d workers: some wait until there is one", wanted)
        return wanted

    def _new_worker(self, index: int) -> WorkerHandle:
        actor = ray.remote(WorkerActor).options(num_cpus=1, max_concurrency=4)
        setup = WorkerSetup(index, self._config, self._output_dir)
        made = actor.remote(self._surroundings, Path(self._log))
        return RayWorker(made, setup, self._config.setup_timeout_s)

    def _await(self, workers: Sequence[WorkerHandle], timeout_s: float) -> Sequence[WorkerHandle]:
        ours = [worker for worker in workers if isinstance(worker, RayWorker)]
        awaited = [ref for worker in ours for ref in worker.waited_for]
        if self._own_servers is not None:
            awaited += self._own_servers.waited_for
        ready: set[Any] = set()
        if awaited:
            ray.wait(awaited, timeout=timeout_s)
            ready = set(ray.wait(awaited, num_returns=len(awaited), timeout=0)[0])
        return [worker for worker in ours if worker.has_ended or worker.collect(ready)]

    def _is_overdue(self, worker: WorkerHandle) -> bool:
        """One that Ray has no place for is not late while others work."""
        assert isinstance(worker, RayWorker)
        if worker.node is None and any(other.described for other in self._workers):
            return False
        return super()._is_overdue(worker)

    def _travels(self, worker: WorkerHandle, spoken: str) -> str:
        assert isinstance(worker, RayWorker)
        if self._own_servers is None:
            return spoken
        return self._own_servers.travels(worker, spoken)

    @property
    def _log(self) -> str:
        return str(self._output_dir / "workers.log")

    def _cpus(self, servers: int) -> int:
        """For a cluster of the run's own: as many as its actors ask for, whatever this machine has."""
        if self._config.n_envs == "auto":
            return max(cores(), number_of_simulators(self._config, sys.maxsize) + servers)
        return max(cores(), int(self._config.n_envs or 1) + servers)

    def _one_for_each_gpu(self) -> int:
        if not self._config.policy_device.startswith("cuda"):
            return 1
        gpus = sum(node.gpus for node in self._nodes)
        if not gpus:
            raise ConfigError("--policy_device=cuda: no node of the cluster has a GPU that Ray knows of")
        return gpus

    def _check_reach(self, uri: str) -> None:
        """Refuse a server that only one of several nodes could reach."""
        scheme, address = split_uri(uri)
        if len(self._nodes) > 1 and (backend(scheme).listener.reach != "network" or is_loopback(address)):
            raise ConfigError(
                f"{uri} can be reached on its own node only, and the cluster has {len(self._nodes)}: leave "
                "--server_address out, or name a server that all of them reach"
            )

    def _needs(self) -> list[Need]:
        """What each node must have."""
        config = self._config
        paths: dict[str, Path | str | None] = {
            "--inference_delay_trace": config.inference_delay_trace,
            "--grpc.token_file": config.grpc.token_file if config.uri is not None else None,
        }
        paths |= {f"--tls.{field.name}": getattr(config.tls, field.name) for field in fields(config.tls)}
        if config.pretrained_name_or_path and config.uri is None:
            folder = Path(config.pretrained_name_or_path).expanduser()
            paths["--pretrained_name_or_path"] = folder if folder.is_dir() else None
        if config.n_videos:
            paths["--n_videos"] = self._output_dir
        needs = [Need(why, str(Path(path).absolute())) for why, path in paths.items() if path is not None]
        module = type(config.env).__module__
        if module != "__main__":
            file = getattr(sys.modules.get(module), "__file__", None)
            # The package, since looking for a module in it would load it.
            needs.append(Need("--env.type", f"{file or module}", module.partition(".")[0]))
        if main := self._surroundings.main.get("init_main_from_path"):
            needs.append(Need("this program", main))
        return needs

    def _stop_servers(self) -> None:
        with interrupts_held():
            if self._own_servers is not None:
                self._own_servers.stop()


def _surroundings(*, own_servers: bool) -> Surroundings:
    variables = {name: os.environ[name] for name in (*_HANDED_ON, TOKEN_VARIABLE) if name in os.environ}
    if own_servers:
        variables[TOKEN_VARIABLE] = secrets.token_hex(32)
    main: dict[str, Any] = main_module()
    scripts = Path(sysconfig.get_path("scripts"))
    if main.get("init_main_from_name") or scripts in Path(main.get("init_main_from_path", "/")).parents:
        main = {}
    return Surroundings(tuple(sys.path), main, variables)
