"""The two sides of the contract suite: `ServedPeer`, a server with a scripted policy, and `ContractClient`.

Each lives in a process of its own, so that a test can kill it; where the backend stays within a process, in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from async_delta_inference.errors import TransportError
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.link_options import LinkOptions
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.policy import Policy, PolicyFunction, PolicyNeeds
from async_delta_inference.transport.registry import backend, open_transport
from async_delta_inference.transport.server import serve
from async_delta_inference.transport.testing.commands import Commands, Remote
from async_delta_inference.transport.testing.messages import CONTRACT_POLICY, contract_observation, expect_answer
from async_delta_inference.transport.testing.policy import ScriptedPolicy, SessionRecord

__all__ = ["ContractClient", "ServedPeer"]

ANSWER_TIMEOUT_S = 60.0

MakePolicy = Callable[[], Policy | PolicyFunction]


class ServedPeer:
    """``serve(policy, uri)`` where a test can hold, fail, stop and kill it. A context manager that ends with `close`.

    Args:
        scheme: Of the backend.
        address: Where to listen; one that nobody uses by default.
        make_policy: Called where the policy lives; a name that another process can import.
        preload: Modules that the policy needs and that take long to load.
        link: What the server is told of its link.
        options: More of `serve`'s, such as ``max_batch``.
    """

    def __init__(
        self,
        scheme: str,
        address: str = "",
        *,
        make_policy: MakePolicy = ScriptedPolicy,
        preload: tuple[str, ...] = (),
        link: LinkOptions | None = None,
        **options: float,
    ) -> None:
        address = address or backend(scheme).listener.unused_address()
        uri = f"{scheme}://{address}"
        self._remote = Remote(scheme, _make_server, uri, make_policy, link, options, preload=preload)
        self.uri: str = self._remote.ask("uri")

    @property
    def pid(self) -> int | None:
        """The id of its process; None where it shares the test's."""
        return self._remote.pid

    # What the server does.

    def waiting(self) -> list[int]:
        """Timesteps of the observations that wait for the policy, one per session at most, sorted."""
        timesteps: list[int] = self._ask("waiting")
        return timesteps

    def stop(self) -> None:
        """Stop in an orderly way."""
        self._ask("stop")

    def kill(self) -> None:
        """Die as with SIGKILL. Idempotent."""
        self._remote.kill()

    def close(self) -> None:
        """Let go of what is held, stop in an orderly way and end the process, unless it was killed before."""
        if self._remote.alive:
            self._ask("close")
        self._remote.kill()

    # What the scripted policy does: its methods say more.

    def hold(self) -> None:
        """Let inferences begin but not end."""
        self._ask("hold")

    def step(self) -> None:
        """Let one of them end."""
        self._ask("step")

    def release(self) -> None:
        """Let all of them end."""
        self._ask("release")

    def fail_next(self, message: str, client: int | None = None) -> None:
        """Make the next inference fail, or the next of one client."""
        self._ask("fail_next", message, client)

    def misbehave_next(self, how: str, client: int | None = None) -> None:
        """Make the next answer ``"wide"``, ``"long"`` or ``"nan"``."""
        self._ask("misbehave_next", how, client)

    def fail_open(self, message: str) -> None:
        """Make the next session's opening fail."""
        self._ask("fail_open", message)

    def ask_for(self, needs: PolicyNeeds) -> None:
        """What the next session must bring."""
        self._ask("ask_for", needs)

    def batches(self) -> list[list[tuple[int, int]]]:
        """The requests of every inference that began, each as its client and timestep."""
        batches: list[list[tuple[int, int]]] = self._ask("batches")
        return batches

    def served(self) -> list[tuple[int, int]]:
        """Client and timestep of every request, in order."""
        return [request for batch in self.batches() for request in batch]

    def seen(self) -> list[int]:
        """Timesteps of every request, in order."""
        return [timestep for _, timestep in self.served()]

    def sessions(self) -> list[SessionRecord]:
        """In the order in which they were opened."""
        records: list[SessionRecord] = self._ask("sessions")
        return records

    def _ask(self, command: str, *arguments: object) -> Any:
        return self._remote.ask(command, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _make_server(uri: str, make_policy: MakePolicy, link: LinkOptions | None, options: dict[str, Any]) -> Commands:
    policy = make_policy()
    server = serve(policy, uri, link=link, **options)
    release = getattr(policy, "release", lambda: None)

    def close() -> None:
        release()
        server.stop()

    def die() -> None:
        """The clients learn it first, and what a test holds does not keep the thread."""
        server.stop(timeout_s=0.0)
        close()

    names = ("hold", "step", "release", "fail_next", "misbehave_next", "fail_open", "ask_for", "batches", "sessions")
    return {name: getattr(policy, name) for name in names if hasattr(policy, name)} | {
        "uri": lambda: server.uris[0],
        "waiting": server.host.waiting_timesteps,
        "stop": server.stop,
        "close": close,
        "die": die,
    }


class ContractClient:
    """A client that a test can kill. A context manager that ends with `kill`.

    Args:
        uri: Of the server; it connects at once.
        number: Its own, which its observations carry.
        spec: What it asks for.
    """

    def __init__(self, uri: str, number: int, spec: SessionSpec = CONTRACT_POLICY) -> None:
        scheme = uri.partition("://")[0]
        self._remote = Remote(scheme, _make_client, uri, number, spec)

    def send(self, timestep: int) -> None:
        """Send an observation of its own."""
        self._remote.ask("send", timestep)

    def receive(self, timestep: int) -> None:
        """Expect the answer to an observation that it sent.

        Raises:
            AssertionError: Another one came.
        """
        self._remote.ask("receive", timestep)

    def borrow(self) -> None:
        """Take a loan and keep it."""
        self._remote.ask("borrow")

    def begin_to_wait(self) -> None:
        """Receive in a thread, for whatever comes."""
        self._remote.ask("begin_to_wait")

    def close(self) -> None:
        """Close the transport in an orderly way."""
        self._remote.ask("close")

    def kill(self) -> None:
        """SIGKILL; within a process, close while it does what it does. Idempotent."""
        self._remote.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()


def _make_client(uri: str, number: int, spec: SessionSpec) -> Commands:
    transport = open_transport(uri, TransportOptions(reconnect_timeout_s=0.0))
    transport.connect(spec)
    kept: list[object] = []

    def wait() -> None:
        try:
            transport.receive_actions(ANSWER_TIMEOUT_S)
        except TransportError:
            return  # It was closed, as a kill within a process is.

    return {
        "send": lambda timestep: transport.send_observation(contract_observation(timestep, client=number)),
        "receive": lambda timestep: expect_answer(transport.receive_actions(ANSWER_TIMEOUT_S), timestep, number),
        "borrow": lambda: kept.append(transport.loan_observation()),
        "begin_to_wait": threading.Thread(target=wait, daemon=True).start,
        "close": transport.close,
        "die": transport.close,
    }
