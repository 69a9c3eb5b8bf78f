"""Server processes for the contract suite, forked from a process that has lerobot loaded once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from async_delta_inference.transport.testing import ContractPeer

START_TIMEOUT_S = 120.0
"""For the first peer of a run, which loads lerobot."""

# Python 3.12.1 does not hand sys.path to the process that peers are forked from, and a preload that fails is silent.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["lerobot_preload"])

Serve = Callable[..., tuple[str, Callable[[], int | None], object]]
"""Run in the child with a ScriptedPolicy: starts a server and returns its URI, what tells the timestep of the
observation that waits for inference, and what must be kept alive. Module-level, to be found by the child."""


class ProcessPeer(ContractPeer):
    """A `ContractPeer` in a child process.

    Args:
        serve: See `Serve`.
        arguments: More arguments of ``serve``.
    """

    def __init__(self, serve: Serve, *arguments: object) -> None:
        self._connection, child = _context.Pipe()
        self._process: BaseProcess = _context.Process(target=_main, args=(child, serve, arguments), daemon=True)
        self._process.start()
        child.close()
        if not self._connection.poll(START_TIMEOUT_S):
            self.kill()
            raise RuntimeError("the peer did not start")
        reply = self._connection.recv()
        if isinstance(reply, Exception):
            self.kill()
            raise reply
        self.uri = reply

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def hold(self) -> None:
        self._ask("hold")

    def release(self) -> None:
        self._ask("release")

    def fail_next(self, message: str) -> None:
        self._ask("fail", message)

    def misbehave_next(self, how: str) -> None:
        self._ask("misbehave", how)

    def seen(self) -> list[int]:
        return self._ask("seen")

    def pending(self) -> int | None:
        return self._ask("pending")

    def resets(self) -> int:
        return self._ask("resets")

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _ask(self, *question: object) -> Any:
        self._connection.send(question)
        if not self._connection.poll(START_TIMEOUT_S):
            raise RuntimeError(f"the peer did not answer {question}")
        return self._connection.recv()


def _main(connection: Connection, serve: Serve, arguments: tuple[object, ...]) -> None:
    from scripted_policy import ScriptedPolicy

    threading.current_thread().name = "peer"
    policy = ScriptedPolicy()
    try:
        uri, pending, _alive = serve(policy, *arguments)
    except Exception as exc:
        connection.send(exc)
        raise
    connection.send(uri)
    while True:
        try:
            verb, *rest = connection.recv()
        except EOFError:
            os._exit(0)  # The test process is gone or has killed us: nothing to tidy that a kill would not leave, too.
        answer: object = None
        if verb == "hold":
            policy.go.clear()
        elif verb == "release":
            policy.go.set()
        elif verb == "fail":
            policy.failure = rest[0]
        elif verb == "misbehave":
            policy.misbehaviour = rest[0]
        elif verb == "seen":
            answer = list(policy.seen)
        elif verb == "pending":
            answer = pending()
        elif verb == "resets":
            answer = policy.resets
        connection.send(answer)
