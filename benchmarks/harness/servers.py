"""Server processes, forked from one that has lerobot loaded: loading it anew would take half a minute each.

What is measured is served by `serve`, as a user would serve it. LeRobot's own server is `UpstreamServer`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Protocol, Self

from async_delta_inference.errors import AsyncDeltaError
from async_delta_inference.transport import SessionSpec, serve
from harness.null_policy import NullPolicy

__all__ = ["KINDS", "LIGHT_KINDS", "ServerProcess", "build_checkpoint", "preload", "private_shm_uri"]

START_TIMEOUT_S = 180.0
LIGHT_KINDS = ("shm", "grpc-native", "grpc-echo")
"""Of `KINDS`, those that need no lerobot."""
_ON_GPU = "gpu/"
"""Begins the kinds that may use a GPU: CUDA does not survive a fork of a process that has so much as asked for it."""
_END_TIMEOUT_S = 20.0

# Python 3.12 does not hand sys.path to the process that servers are forked from, and a preload that fails is silent.
_FOLDER = str(Path(__file__).parent.parent)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["harness.preload"])


def preload() -> None:
    """Begin to load lerobot in the process that servers are forked from; returns at once."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_FOLDER, os.environ.get("PYTHONPATH")]))
    multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]


def build_checkpoint(policy_type: str, folder: Path, policy: SessionSpec, image_size: int) -> None:
    """Write a random checkpoint that takes the observations of ``policy``, in a process that has lerobot loaded.

    Args:
        policy_type: act or diffusion.
        folder: Where.
        policy: What observes and acts.
        image_size: Height and width of the policy's images, pixels.

    Raises:
        AsyncDeltaError: It could not be written.
    """
    process = _context.Process(target=_BUILDERS[policy_type], args=(folder, policy, image_size))
    process.start()
    process.join()
    if process.exitcode:
        raise AsyncDeltaError(f"the {policy_type} checkpoint could not be written to {folder}")


class ServerProcess:
    """A server in a process of its own, until closed.

    Args:
        kind: Key of `KINDS`.
        slots: For observations and for actions, of every session of the kind ``shm``; as the product has them where it
            is None.
    """

    def __init__(self, kind: str, slots: tuple[int, int] | None = None) -> None:
        self.kind = kind
        self._folder = tempfile.TemporaryDirectory(prefix="adi-bench-")
        # The transport alone runs without lerobot's half gigabyte around it.
        is_spawned = kind in LIGHT_KINDS or kind.startswith(_ON_GPU)
        context = multiprocessing.get_context("spawn") if is_spawned else _context
        self._connection, child = context.Pipe()
        arguments = (child, kind, self._folder.name, slots)
        self._process: BaseProcess = context.Process(target=_main, args=arguments, daemon=True)
        self._process.start()
        child.close()
        self.uri: str = self._answer()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def record_stages(self, on: bool) -> None:
        """Switch its stage recorder."""
        self._ask("record", on)

    def stage_marks(self) -> list[tuple[str, int, int]]:
        """What its stage recorder has, as (stage, timestep, ns); forgotten there."""
        marks: list[tuple[str, int, int]] = self._ask("marks")
        return marks

    def close(self) -> None:
        """End it; idempotent."""
        self._connection.close()  # Its sign to end in an orderly way.
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, *question: Any) -> Any:
        self._connection.send(question)
        return self._answer()

    def _answer(self) -> Any:
        if not self._connection.poll(START_TIMEOUT_S):
            self.close()
            raise AsyncDeltaError(f"the server process {self.kind} does not answer")
        try:
            answer = self._connection.recv()
        except EOFError as exc:
            self.close()
            raise AsyncDeltaError(f"the server process {self.kind} died") from exc
        if isinstance(answer, Exception):
            raise answer
        return answer


def _build_act(folder: Path, policy: SessionSpec, image_size: int) -> None:
    sys.path.append(str(Path(_FOLDER).parent / "examples"))
    from random_act import build_random_act

    shape = {"chunk_size": policy.actions_per_chunk, "image_size": image_size}
    build_random_act(folder, policy.features, policy.action_dim, **shape)


def _build_diffusion(folder: Path, policy: SessionSpec, image_size: int) -> None:
    from harness.random_diffusion import build_random_diffusion

    build_random_diffusion(folder, policy.features, policy.action_dim, image_size, policy.actions_per_chunk)


_BUILDERS = {"act": _build_act, "diffusion": _build_diffusion}


def _main(connection: Connection, kind: str, folder: str, slots: tuple[int, int] | None) -> None:
    from async_delta_inference import stages

    # PolicyServer would format some lines for every observation: in its favour they are off.
    logging.getLogger("policy_server").setLevel(logging.WARNING)
    try:
        uri, server = KINDS[kind](folder) if slots is None else _serve_shm_with(slots)
    except Exception as exc:
        connection.send(exc)
        raise
    connection.send(uri)
    clock: Any = getattr(server, "clock", None)  # Around the forward passes; benchmarks/gpu.py's servers have one.
    while True:
        try:
            verb, *rest = connection.recv()
        except (EOFError, KeyboardInterrupt):
            server.stop()
            os._exit(0)
        answer: object = None
        if verb == "record":
            stages.start() if rest[0] else stages.stop()
            if clock is not None:
                clock.recording = rest[0]
        elif verb == "marks":
            answer = stages.take()
        elif verb == "forwards" and clock is not None:
            answer = clock.take()
        connection.send(answer)


class _Stoppable(Protocol):
    def stop(self) -> None:
        """Leave nothing behind."""


_Served = tuple[str, _Stoppable]


# LeRobot's server, with the null policy in the place of the weights.


def _serve_grpc(folder: str) -> _Served:
    return _serve_upstream("127.0.0.1:0")


def _serve_grpc_default(folder: str) -> _Served:
    return _serve_upstream("127.0.0.1:0", latency_s=1 / 30)


def _serve_grpc_unix(folder: str) -> _Served:
    return _serve_upstream(f"unix:{folder}/grpc")


def _serve_upstream(address: str, latency_s: float = 0.0) -> _Served:
    from async_delta_inference.server_adapter.upstream import UpstreamServer, probe_stages
    from harness.null_weights import null_policy_server

    _limit_threads()
    policy_server = null_policy_server(inference_latency_s=latency_s)
    probe_stages(policy_server)
    server = UpstreamServer(address, policy_server)
    server.start()
    return server.uri, server


def _serve_grpc_wire(folder: str) -> _Served:
    from async_delta_inference.server_adapter.upstream import UpstreamServer
    from harness.null_weights import WireOnly, null_policy_server

    server = UpstreamServer("127.0.0.1:0", null_policy_server(WireOnly))
    server.start()
    return server.uri, server


# Ours.


def _serve_grpc_ours(folder: str) -> _Served:
    return _serve_policy("grpc://127.0.0.1:0")


def _serve_shm_host(folder: str) -> _Served:
    return _serve_policy(private_shm_uri())


def _serve_policy(uri: str) -> _Served:
    """The product's policy, with the null policy in the place of the weights."""
    from harness.null_weights import NullLeRobotPolicy

    _limit_threads()
    server = serve(NullLeRobotPolicy(), uri)
    return server.uris[0], server


def _serve_shm(folder: str) -> _Served:
    """Shared memory with a trivial policy: the transport alone."""
    server = serve(NullPolicy(), private_shm_uri())
    return server.uris[0], server


def _serve_grpc_native(folder: str) -> _Served:
    """Our own protocol over loopback, with the same policy."""
    server = serve(NullPolicy(), "grpc://127.0.0.1:0")
    return server.uris[0], server


def _serve_grpc_echo(folder: str) -> _Served:
    """No transport of ours: see `harness.grpc_echo`."""
    from harness.grpc_echo import EchoServer

    server = EchoServer()
    return server.uri, server


def _serve_stack(name: str, folder: str) -> _Served:
    """With real weights and a clock around their forward passes: see `harness.gpu.served`."""
    from harness.gpu.served import STACKS

    return STACKS[name](folder)


def _serve_shm_with(slots: tuple[int, int]) -> _Served:
    """As `_serve_shm`, with rings whose depth no flag of the product sets."""
    from async_delta_inference.transport import Server, SessionHost
    from async_delta_inference.transport.shm.server.listener import ShmListener

    host = SessionHost(NullPolicy())
    address = private_shm_uri().removeprefix("shm://")
    listener = ShmListener(address, host, observation_slots=slots[0], action_slots=slots[1])
    server = Server(host, (listener,))
    server.start()
    return server.uris[0], server


def _limit_threads() -> None:
    import torch

    # Two cores, two processes.
    torch.set_num_threads(1)


def private_shm_uri() -> str:
    """An address that nobody else uses."""
    return f"shm://bench-{os.getpid()}-{token_hex(4)}"


KINDS: dict[str, Callable[[str], _Served]] = {
    "grpc": _serve_grpc,
    "grpc-default": _serve_grpc_default,
    "grpc-echo": _serve_grpc_echo,
    "grpc-native": _serve_grpc_native,
    "grpc-ours": _serve_grpc_ours,
    "grpc-unix": _serve_grpc_unix,
    "grpc-wire": _serve_grpc_wire,
    "shm": _serve_shm,
    "shm-host": _serve_shm_host,
    **{_ON_GPU + name: partial(_serve_stack, name) for name in ("grpc", "shm-pageable", "shm-pinned")},
}
"""How to serve, by the name of the transport in the results. Run in the child, with a folder of its own; the server has
started."""
