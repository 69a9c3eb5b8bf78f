"""A Ray cluster: joined, or started and ended; its nodes, and whether they have what a run needs."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from async_delta_inference.client.run.interrupts import interrupts_held
from async_delta_inference.client.run.on_ray.actors import Need, find_missing
from async_delta_inference.errors import ConfigError, PeerUnreachableError
from async_delta_inference.transport.addresses import is_loopback

__all__ = ["Node", "check_nodes", "joined_cluster", "living_nodes"]

_LOOK_TIMEOUT_S = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Of a cluster of this run's own: nobody is told of it, nobody else of this machine gets in, and nobody from elsewhere
reaches it (Ray keeps to the loopback address where it thinks that it cannot have several nodes)."""
_MODE = "RAY_AUTH_MODE"
"""Ray sets it where it is unset, so that the processes of the cluster ask for the token, too."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster.

    Args:
        name: Ray's, which is none to read.
        host: Its address.
        cpus: How many actors of ours Ray places there.
        gpus: Its devices.
        memory_bytes: As Ray counts it; 0 where it does not say.
    """

    name: str
    host: str
    cpus: int
    gpus: int
    memory_bytes: int

    def __str__(self) -> str:
        return f"node {self.host} ({self.name[:8]})"


@contextmanager
def joined_cluster(address: str | None, cpus: int, connect_timeout_s: float) -> Iterator[None]:
    """Use a cluster until the end of the block; one that the program has joined before is used as it is.

    Args:
        address: Of one that is there, or ``auto``; None or ``local``: one is started, which only this run can use.
        cpus: How many actors one that is started is to hold.
        connect_timeout_s: How long to wait for an address to answer.

    Raises:
        PeerUnreachableError: There is none at the address, or it is of another version.
    """
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        with interrupts_held(), _handlers_kept():
            stack.callback(_leave)
            if address in (None, "local"):
                _start(stack, cpus)
            else:
                assert address is not None
                _join(address, connect_timeout_s)
        yield


def _leave() -> None:
    with interrupts_held(), _handlers_kept():
        ray.shutdown()


def _start(stack: ExitStack, cpus: int) -> None:
    before = {name: os.environ.get(name) for name in (*_PRIVATE, _MODE)}
    os.environ.update(_PRIVATE)
    stack.callback(_put_back, before)
    stack.enter_context(_no_other_nodes())
    # Short, since the paths of sockets in it are not.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adi-ray-", ignore_cleanup_errors=True))
    stack.callback(_leave)
    _init("a cluster of its own", address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder)


def _join(address: str, connect_timeout_s: float) -> None:
    where = f"--ray_address={address}"
    host, _, port = address.rpartition(":")
    if address != "auto":
        # Ray would try for minutes. It knows this node by another address than the loopback one.
        host = ray.util.get_node_ip_address() if is_loopback(address) else host
        try:
            socket.create_connection((host, int(port)), connect_timeout_s).close()
        except (OSError, ValueError, OverflowError) as exc:
            raise PeerUnreachableError(f"{where}: no Ray cluster answers there: {exc}") from exc
    _init(where, address=address)


@contextmanager
def _no_other_nodes() -> Iterator[None]:
    """The variable of `_PRIVATE`, which Ray reads when it is imported."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _init(where: str, **arguments: Any) -> None:
    try:
        with _quiet():
            ray.init(configure_logging=False, log_to_driver=False, **arguments)
    except Exception as exc:  # What Ray raises where it cannot join is not of one kind.
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise PeerUnreachableError(f"{where}: Ray cannot be used there: {reason}") from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's advice is for whoever sets a cluster up."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _put_back(variables: dict[str, str | None]) -> None:
    """Ray, too, forgets the token: a cluster that is joined later could not talk to this process otherwise."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")  # In this order, says Ray: who is still on the way would look for a token.
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, by one that ends the process; it can do so in the main thread only."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)


def living_nodes() -> list[Node]:
    """Those of the cluster, this one first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: node.name != here)


def check_nodes(nodes: Sequence[Node], needs: Sequence[Need], path: Sequence[str]) -> None:
    """Refuse a cluster in which a node lacks something, before anything is run on it.

    Args:
        nodes: To ask, all at the same time.
        needs: What each of them must have.
        path: Where modules are.

    Raises:
        ConfigError: Names the node and what it has not got.
    """
    look = ray.remote(num_cpus=0, max_retries=0)(find_missing)
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False)).remote(
            list(needs), list(path)
        )
        for node in nodes
    }
    deadline_s = time.monotonic() + _LOOK_TIMEOUT_S
    for node, answer in asked.items():
        try:
            missing = ray.get(answer, timeout=max(0.0, deadline_s - time.monotonic()))
        except Exception as exc:  # As above.
            raise ConfigError(_why_not(node, exc)) from exc
        if missing:
            (need, *_) = missing
            raise ConfigError(
                f"{node} has no {need.path}, which {need.why} needs: each node must have it at the same path, on a "
                "file system that all share, say"
            )


def _why_not(node: Node, exc: BaseException) -> str:
    cause = getattr(exc, "cause", None) or exc
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if any("No module named 'async_delta_inference" in line for line in lines):
        return f"{node} has no async_delta_inference: install this version of it, with its extras, on every node"
    return f"{node} cannot be used: {lines[-1] if lines else type(cause).__name__}"
