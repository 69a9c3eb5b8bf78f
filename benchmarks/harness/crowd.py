"""Client processes that exchange with one server at the same time, and sessions that only wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from multiprocessing.connection import Connection

from async_delta_inference.errors import AsyncDeltaError
from async_delta_inference.transport import connect
from harness.exchanges import CopyExchange
from harness.payloads import Payload
from harness.resources import cpu_ns
from harness.servers import ServerProcess
from harness.statistics import Series

__all__ = ["exchange_together", "idle_cpu_s"]

_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 60.0
_HEAD_START_S = 0.5
"""From the last client's word that it is connected until all begin at once."""

_CHECK_EVERY = 500
_WARMUP = 20
_STRIDE = 64
"""How far apart one client's numbers are, so that no number, and no mark made of it, is another client's."""


def exchange_together(server: ServerProcess, payload: Payload, clients: int, seconds: float) -> list[int]:
    """Have client processes exchange without a pause, all in the same seconds.

    Returns:
        How many exchanges each finished within them.

    Raises:
        AsyncDeltaError: A client died, or a reply was missing or another session's.
    """
    if not 1 <= clients <= _STRIDE:
        raise AsyncDeltaError(f"1 to {_STRIDE} clients can be told apart, got {clients}")
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        connections = []
        for number in range(clients):
            ours, theirs = context.Pipe()
            arguments = (theirs, server.uri, payload, number, seconds)
            process = context.Process(target=_run_client, args=arguments, name=f"client {number}", daemon=True)
            process.start()
            theirs.close()
            stack.callback(_end, process)
            connections.append(ours)
        for number, connection in enumerate(connections):
            _hear(connection, number, _START_TIMEOUT_S)
        start_s = time.monotonic() + _HEAD_START_S
        for connection in connections:
            connection.send(start_s)
        return [_hear(connection, number, seconds + _END_TIMEOUT_S) for number, connection in enumerate(connections)]


def idle_cpu_s(server: ServerProcess, payload: Payload, sessions: int, seconds: float) -> float:
    """CPU time of a server whose sessions are connected and say nothing, over ``seconds``."""
    with _sessions(server, payload, sessions):
        before_ns = cpu_ns(server.pid)
        time.sleep(seconds)
        return (cpu_ns(server.pid) - before_ns) / 1e9


@contextmanager
def _sessions(server: ServerProcess, payload: Payload, sessions: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(sessions):
            stack.enter_context(connect(server.uri, payload.spec()))
        yield


def _hear(connection: Connection, number: int, timeout_s: float) -> int:
    """What a client process says next."""
    if not connection.poll(timeout_s):
        raise AsyncDeltaError(f"client {number} says nothing")
    try:
        said = connection.recv()
    except EOFError as exc:
        raise AsyncDeltaError(f"client {number} died") from exc
    if isinstance(said, Exception):
        raise said
    heard: int = said
    return heard


def _end(process: multiprocessing.process.BaseProcess) -> None:
    process.kill()  # It has closed its transport before it told its number.
    process.join()


# In a client's process.


def _run_client(connection: Connection, uri: str, payload: Payload, number: int, seconds: float) -> None:
    try:
        connection.send(_exchange(connection, uri, payload, number, seconds))
    except AsyncDeltaError as exc:
        connection.send(exc)


def _exchange(connection: Connection, uri: str, payload: Payload, number: int, seconds: float) -> int:
    with connect(uri, payload.spec()) as transport:
        series = Series("shm", "copy", payload.name)
        exchange = CopyExchange(transport, count(number, _STRIDE), payload, series, server_pid=0)
        _repeat(exchange, _WARMUP)
        connection.send(_WARMUP)
        start_s = connection.recv()
        time.sleep(max(0.0, start_s - time.monotonic()))
        until_s = start_s + seconds
        finished = 0
        while time.monotonic() < until_s:
            exchange.once()
            finished += 1
            if finished % _CHECK_EVERY == 0:
                exchange.check()
        exchange.check()
        return finished


def _repeat(exchange: CopyExchange, times: int) -> None:
    for _ in range(times):
        exchange.once()
    exchange.check()
