"""Server processes, forked from one that has lerobot loaded: loading it anew would take half a minute each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from async_delta_inference.errors import AsyncDeltaError
from async_delta_inference.transport import SessionSpec

__all__ = ["KINDS", "ServerProcess", "build_act", "preload"]

START_TIMEOUT_S = 180.0

# Python 3.12 does not hand sys.path to the process that servers are forked from, and a preload that fails is silent.
_FOLDER = str(Path(__file__).parent.parent)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["harness.preload"])


def preload() -> None:
    """Begin to load lerobot in the process that servers are forked from; returns at once."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_FOLDER, os.environ.get("PYTHONPATH")]))
    multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]


def build_act(folder: Path, policy: SessionSpec, image_size: int) -> None:
    """Write a random ACT checkpoint that takes the observations of ``policy``, in a process that has lerobot loaded.

    Raises:
        AsyncDeltaError: It could not be written.
    """
    process = _context.Process(target=_build_act, args=(folder, policy, image_size))
    process.start()
    process.join()
    if process.exitcode:
        raise AsyncDeltaError(f"the ACT checkpoint could not be written to {folder}")


class ServerProcess:
    """A server in a process of its own, until closed.

    Args:
        kind: Key of `KINDS`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._folder = tempfile.TemporaryDirectory(prefix="adi-bench-")
        # The transport alone runs without lerobot's half gigabyte around it.
        context = multiprocessing.get_context("spawn") if kind == "shm" else _context
        self._connection, child = context.Pipe()
        self._process: BaseProcess = context.Process(target=_main, args=(child, kind, self._folder.name), daemon=True)
        self._process.start()
        child.close()
        self.uri: str = self._answer()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def expect(self, policy: SessionSpec) -> None:
        """Tell it what the next null policy is to look like."""
        self._ask("expect", policy)

    def record_stages(self, on: bool) -> None:
        """Switch its stage recorder."""
        self._ask("record", on)

    def stage_marks(self) -> list[tuple[str, int, int]]:
        """What its stage recorder has, as (stage, timestep, ns); forgotten there."""
        marks: list[tuple[str, int, int]] = self._ask("marks")
        return marks

    def close(self) -> None:
        """End it; idempotent."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()
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


def _main(connection: Connection, kind: str, folder: str) -> None:
    from async_delta_inference import stages
    from harness.null_policy import expect

    # PolicyServer would format some lines for every observation: in its favour they are off.
    logging.getLogger("policy_server").setLevel(logging.WARNING)
    try:
        uri, _alive = KINDS[kind](folder)
    except Exception as exc:
        connection.send(exc)
        raise
    connection.send(uri)
    while True:
        try:
            verb, *rest = connection.recv()
        except EOFError:
            os._exit(0)
        answer: object = None
        if verb == "expect":
            expect(rest[0])
        elif verb == "record":
            stages.start() if rest[0] else stages.stop()
        elif verb == "marks":
            answer = stages.take()
        connection.send(answer)


def _serve_grpc(folder: str, *, latency_s: float = 0.0, address: str = "127.0.0.1:0") -> tuple[str, object]:
    """PolicyServer as it is, with the null policy in the place of the weights."""
    from async_delta_inference.server_adapter.grpc_service import GrpcService
    from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
    from async_delta_inference.server_adapter.stage_probe import probe_stages
    from harness.null_policy import install_null_policy

    module: Any = load_policy_server_module()
    _limit_threads()
    install_null_policy(module)
    server = module.PolicyServer(module.PolicyServerConfig(inference_latency=latency_s))
    probe_stages(server)
    service = GrpcService(server, address)
    service.start()
    return service.uri, service


def _serve_grpc_default(folder: str) -> tuple[str, object]:
    return _serve_grpc(folder, latency_s=1 / 30)


def _serve_grpc_unix(folder: str) -> tuple[str, object]:
    return _serve_grpc(folder, address=f"unix:{folder}/grpc")


def _serve_grpc_wire(folder: str) -> tuple[str, object]:
    """Pickle over gRPC as PolicyServer uses them, without the rest of PolicyServer: the counterpart of shm alone."""
    from async_delta_inference.server_adapter.grpc_service import GrpcService
    from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
    from harness.null_policy import constant_chunk, install_null_policy

    module: Any = load_policy_server_module()
    install_null_policy(module)

    class WireOnly(module.PolicyServer):  # type: ignore[misc]
        def _predict_action_chunk(self, observation_t: Any) -> Any:
            import torch

            raw = observation_t.get_observation()
            shape = self.policy.chunk_shape
            actions = torch.from_numpy(constant_chunk(shape))
            actions[0, 0] = next(iter(raw.values()))
            images = [value for value in raw.values() if hasattr(value, "ndim")]
            actions[0, 1] = float(images[-1][-1, -1, -1]) if images else -1.0
            return self._time_action_chunk(observation_t.get_timestamp(), list(actions), observation_t.get_timestep())

    service = GrpcService(WireOnly(module.PolicyServerConfig(inference_latency=0.0)), "127.0.0.1:0")
    service.start()
    return service.uri, service


def _serve_shm(folder: str) -> tuple[str, object]:
    """The shared-memory endpoint with a trivial function: the transport alone."""
    from async_delta_inference.transport.shm.endpoint import ShmEndpoint
    from harness.null_policy import NullHandler

    endpoint = ShmEndpoint(_name(), NullHandler())
    endpoint.start()
    return endpoint.uri, endpoint


def _serve_shm_host(folder: str) -> tuple[str, object]:
    """PolicyServer with the null policy behind shared memory."""
    from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
    from async_delta_inference.server_adapter.policy_host import PolicyHost
    from async_delta_inference.server_adapter.shm_service import ShmService
    from harness.null_policy import install_null_policy

    _limit_threads()
    install_null_policy(load_policy_server_module())
    service = ShmService(PolicyHost(), _name())
    service.start()
    return service.uri, service


def _limit_threads() -> None:
    import torch

    # Two cores, two processes.
    torch.set_num_threads(1)


def _name() -> str:
    return f"bench-{os.getpid()}-{token_hex(4)}"


KINDS = {
    "grpc": _serve_grpc,
    "grpc-default": _serve_grpc_default,
    "grpc-unix": _serve_grpc_unix,
    "grpc-wire": _serve_grpc_wire,
    "shm": _serve_shm,
    "shm-host": _serve_shm_host,
}
"""How to serve, by the name of the transport in the results; run in the child, returns the URI and what to keep."""
