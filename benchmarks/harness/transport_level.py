"""The `Transport` interface alone, between two processes, with a policy that costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from async_delta_inference.transport import connect
from harness.exchanges import CopyExchange, Exchange, LoanExchange
from harness.floor import Floor
from harness.grpc_echo import EchoExchange
from harness.pacing import run_paced, run_tight
from harness.payloads import Payload
from harness.placement import PLACEMENTS, placed, processors_of
from harness.servers import ServerProcess
from harness.statistics import Series

__all__ = ["measure_payload"]

_MODES = {"shm": ("copy", "loan"), "shm-host": ("loan",)}
"""Only shared memory has memory of its own to lend; behind PolicyServer, what SimClient does: it loans."""

_PACED = ("grpc", "shm", "shm-host")
"""What takes part when paced: the product. At its default latency the server sleeps and has no place in a timetable."""


def measure_payload(
    payload: Payload,
    servers: Mapping[str, ServerProcess],
    kinds: Sequence[str],
    *,
    tight: int,
    paced: int,
    floor_program: Path | None,
    more: Sequence[Exchange] = (),
) -> list[Series]:
    """Everything of one payload, in the same rounds.

    Args:
        payload: What is exchanged.
        servers: By kind.
        kinds: Of them, which take part.
        tight: Exchanges of each in the tight loop; 0 leaves it out.
        paced: Exchanges of each at the environment's rate; 0 leaves it out.
        floor_program: The compiled floor, which takes part in the tight loop.
        more: Other exchanges of the tight loop.
    """
    series: list[Series] = []
    with _exchanges(payload, servers, kinds) as exchanges:
        if tight:
            floors = [Floor(floor_program, payload)] if floor_program else []
            together = [*floors, *exchanges, *more]
            run_tight(together, tight)
            series += [exchange.series for exchange in together]
            if floor_program:
                series += _measure_placed(
                    [e for e in exchanges if e.series.transport == "shm"], floor_program, payload, tight
                )
        if paced:
            punctual = [exchange for exchange in exchanges if exchange.series.transport in _PACED]
            for exchange in punctual:
                exchange.series = Series(exchange.series.transport, exchange.series.mode, payload.name, pacing="paced")
            run_paced(punctual, paced)
            series += [exchange.series for exchange in punctual]
    return series


def _measure_placed(exchanges: Sequence[Exchange], floor_program: Path, payload: Payload, count: int) -> list[Series]:
    """Shared memory and the floor alone, both on one core, then both on two."""
    series: list[Series] = []
    for cores in PLACEMENTS:
        processors = processors_of(cores)
        if processors is None or not exchanges:
            continue
        client, server = processors
        floor = Floor(floor_program, payload, cores, (min(client), min(server)))
        for exchange in exchanges:
            exchange.series = Series(exchange.series.transport, exchange.series.mode, payload.name, cores=cores)
        with placed(exchanges[0].server_pid, client, server):
            run_tight([floor, *exchanges], count)
        series += [floor.series, *(exchange.series for exchange in exchanges)]
    return series


@contextmanager
def _exchanges(
    payload: Payload, servers: Mapping[str, ServerProcess], kinds: Sequence[str]
) -> Iterator[list[Exchange]]:
    with ExitStack() as stack:
        exchanges: list[Exchange] = []
        for kind in kinds:
            server = servers[kind]
            if kind == "grpc-echo":
                echo = EchoExchange(server.uri, payload, server.pid)
                stack.callback(echo.close)
                exchanges.append(echo)
                continue
            transport = stack.enter_context(connect(server.uri, payload.spec()))
            numbers = count()
            for make, mode in ((CopyExchange, "copy"), (LoanExchange, "loan")):
                if mode in _MODES.get(kind, ("copy",)):
                    series = Series(kind, mode, payload.name)
                    exchanges.append(make(transport, numbers, payload, series, server.pid))
        yield exchanges
