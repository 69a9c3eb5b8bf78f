"""What ``benchmarks/gpu.py`` measures around the forward pass, served: in a process of its own, or in this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from async_delta_inference.transport import serve
from harness.gpu.forward_clock import Forward, ForwardClock
from harness.servers import ServerProcess, private_shm_uri

__all__ = ["STACKS", "ClockedServer", "ServerHere", "ServerThere", "policy_server_stack", "shm_stack"]


class _Served(Protocol):
    """A server that has started, with the clock of its policy."""

    clock: ForwardClock

    def stop(self) -> None:
        """Leave nothing behind."""


class ClockedServer(Protocol):
    """What `harness.client_level.ClientVariant` asks of a server, and its forward passes."""

    uri: str

    @property
    def pid(self) -> int:
        """Process id."""

    def record_stages(self, on: bool) -> None:
        """Switch its stage recorder and its clock."""

    def stage_marks(self) -> list[tuple[str, int, int]]:
        """What its stage recorder has, forgotten there."""

    def forwards(self) -> list[Forward]:
        """The forward passes since the recorder was switched on, forgotten there."""


def policy_server_stack(folder: str) -> tuple[str, _Served]:
    """LeRobot's PolicyServer over LeRobot's protocol."""
    from async_delta_inference.server_adapter.upstream import UpstreamServer, probe_stages
    from harness.gpu.timed_policies import timed_policy_server

    policy_server = timed_policy_server()
    probe_stages(policy_server)
    server: Any = UpstreamServer("127.0.0.1:0", policy_server)
    server.clock = policy_server.clock
    server.start()
    return server.uri, server


def shm_stack(pinned: bool) -> Callable[[str], tuple[str, _Served]]:
    """The product over shared memory, with or without pinned slots."""

    def start(folder: str) -> tuple[str, _Served]:
        from harness.gpu.timed_policies import TimedLeRobotPolicy

        policy = TimedLeRobotPolicy(pinned=pinned)
        server: Any = serve(policy, private_shm_uri())
        server.clock = policy.clock
        return server.uris[0], server

    return start


STACKS = {
    "grpc": policy_server_stack,
    "shm-pageable": shm_stack(pinned=False),
    "shm-pinned": shm_stack(pinned=True),
}
"""What is compared, by its name in the results."""


class ServerThere(ServerProcess):
    """In a process of its own, which alone uses the device.

    Args:
        stack: Key of `STACKS`.
    """

    def __init__(self, stack: str) -> None:
        super().__init__(f"gpu/{stack}")

    def forwards(self) -> list[Forward]:
        """See `ClockedServer`."""
        taken: list[Forward] = self._ask("forwards")
        return taken


class ServerHere:
    """In threads of this process: for a test of this benchmark, whose client then has the server's work beside it.

    Args:
        stack: Key of `STACKS`.
    """

    def __init__(self, stack: str) -> None:
        self.uri, self._server = STACKS[stack]("")

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def record_stages(self, on: bool) -> None:
        """See `ClockedServer`; client and server share one recorder, which the client switches."""
        self._server.clock.recording = on

    def stage_marks(self) -> list[tuple[str, int, int]]:
        """None besides the client's."""
        return []

    def forwards(self) -> list[Forward]:
        """See `ClockedServer`."""
        return self._server.clock.take()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.stop()
