"""One exchange of an observation for a chunk, timed and checked, over any transport."""

from __future__ import annotations

import time
from itertools import count
from typing import Protocol

from async_delta_inference.transport import ActionChunk, Transport
from harness.null_policy import check_reply, constant_chunk, mark_observation
from harness.payloads import Payload
from harness.statistics import Series

__all__ = ["CopyExchange", "Exchange", "LoanExchange"]

_TIMEOUT_S = 60.0


class Exchange(Protocol):
    """Something that can be measured.

    Attributes:
        series: Where its rounds go.
        server_pid: Of the process at the other end.
    """

    series: Series
    server_pid: int

    def once(self) -> int:
        """Exchange once.

        Returns:
            How long it took, ns; making the observation is not in it.
        """

    def check(self) -> None:
        """Look at all replies since the last time; apart from the exchanges, whose caches it would cool.

        Raises:
            ProtocolError: One is not the reply to what was sent.
        """


class CopyExchange:
    """From one's own arrays to a chunk: `Transport.send_observation` and `Transport.receive_actions`.

    Args:
        transport: Connected.
        numbers: Of the observations; shared by all exchanges of a transport, since timesteps never decrease.
        payload: Of the session.
        series: Where its rounds go.
        server_pid: Of the server's process.
    """

    def __init__(
        self, transport: Transport, numbers: count[int], payload: Payload, series: Series, server_pid: int
    ) -> None:
        self.series = series
        self.server_pid = server_pid
        self._transport = transport
        self._numbers = numbers
        self._observation = payload.observation()
        self._expected = constant_chunk(payload.chunk)
        self._replies: list[tuple[int, ActionChunk | None]] = []

    def once(self) -> int:
        """See `Exchange`."""
        observation, transport = self._observation, self._transport
        number = next(self._numbers)
        mark_observation(observation, number)
        start_ns = time.perf_counter_ns()
        transport.send_observation(observation)
        chunk = transport.receive_actions(_TIMEOUT_S)
        duration_ns = time.perf_counter_ns() - start_ns
        self._replies.append((number, chunk))
        return duration_ns

    def check(self) -> None:
        """See `Exchange`."""
        for number, chunk in self._replies:
            check_reply(chunk, number, self._expected)
        self._replies.clear()


class LoanExchange(CopyExchange):
    """From a loaned observation, written by its producer, to a chunk. Writing it is the producer's cost, as making the
    arrays is in `CopyExchange`; taking the loan and sending it are counted.
    """

    def once(self) -> int:
        """See `Exchange`."""
        transport = self._transport
        number = next(self._numbers)
        task = self._observation.task
        start_ns = time.perf_counter_ns()
        observation = transport.loan_observation()
        loaned_ns = time.perf_counter_ns() - start_ns
        mark_observation(observation, number)
        observation.task = task
        start_ns = time.perf_counter_ns()
        transport.send_observation(observation)
        chunk = transport.receive_actions(_TIMEOUT_S)
        duration_ns = time.perf_counter_ns() - start_ns + loaned_ns
        self._replies.append((number, chunk))
        return duration_ns
