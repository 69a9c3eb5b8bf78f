"""Processes that stand for simulators: each sends LIBERO's payload over shared memory as soon as it was answered.

They import nothing of torch's or lerobot's.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import AsyncDeltaError, ProtocolError
from async_delta_inference.transport import Observation, SessionSpec, Transport, TransportOptions, connect
from harness.payloads import Payload

__all__ = ["Exchanges", "Job", "Simulators"]

_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0

Exchanges = NDArray[np.int64]
"""(n, 2): when each chunk came, of ``time.monotonic_ns()``, and how long it took since its frame was to be written."""


@dataclass(frozen=True)
class Job:
    """What a simulator is told.

    Args:
        uri: Of the server.
        spec: Of the session.
        payload: What it observes.
        think_s: How long it simulates between a chunk and the next observation.
    """

    uri: str
    spec: SessionSpec
    payload: Payload
    think_s: float


class Simulators:
    """Processes that are started once and then told again and again what to do. Use it as a context manager.

    Args:
        most: How many there are.

    Raises:
        AsyncDeltaError: One does not start.
    """

    def __init__(self, most: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._connections: list[Connection] = []
        for number in range(most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_simulate, args=(theirs, number), name=f"simulator {number}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        self._hear(range(most), _START_TIMEOUT_S)

    @contextmanager
    def at_work(self, job: Job, sessions: int, collected: list[Exchanges]) -> Iterator[None]:
        """Within it so many of them exchange; then what each did is in ``collected``.

        Raises:
            AsyncDeltaError: A session did not begin, a reply is missing or another's, or a process died.
        """
        busy = range(sessions)
        self._tell(busy, job)
        try:
            # Each has had its first answer.
            self._hear(busy, _ANSWER_TIMEOUT_S)
            yield
        finally:
            self._tell(busy, None)
            said = self._hear(busy, 2 * _ANSWER_TIMEOUT_S)
        collected += [np.frombuffer(one, np.int64).reshape(-1, 2) for one in said]

    def _tell(self, numbers: Sequence[int], what: Job | None) -> None:
        for number in numbers:
            self._connections[number].send(what)

    def _hear(self, numbers: Sequence[int], timeout_s: float) -> list[bytes]:
        """What each says next; an error once all have been heard, so that the next question finds them waiting."""
        deadline_s = time.monotonic() + timeout_s
        said = [_hear(self._connections[number], number, deadline_s) for number in numbers]
        if errors := [one for one in said if isinstance(one, AsyncDeltaError)]:
            raise errors[0]
        return [one for one in said if isinstance(one, bytes)]

    def close(self) -> None:
        """End them."""
        for connection in self._connections:
            connection.close()
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        for process in self._processes:
            process.join(max(0.0, deadline_s - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _hear(connection: Connection, number: int, deadline_s: float) -> bytes | AsyncDeltaError:
    if not connection.poll(max(0.0, deadline_s - time.monotonic())):
        return AsyncDeltaError(f"simulator {number} says nothing")
    try:
        said = connection.recv()
    except EOFError:
        return AsyncDeltaError(f"simulator {number} died")
    assert isinstance(said, bytes | AsyncDeltaError)
    return said


# In a simulator's process.


def _simulate(connection: Connection, number: int) -> None:
    connection.send(b"")
    try:
        while True:
            said = _work(connection, connection.recv(), number)
            connection.recv()  # That it is to stop.
            connection.send(said)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _work(connection: Connection, job: Job, number: int) -> bytes | AsyncDeltaError:
    has_begun = False
    options = TransportOptions(setup_timeout_s=_ANSWER_TIMEOUT_S, inference_timeout_s=_ANSWER_TIMEOUT_S)
    try:
        with connect(job.uri, job.spec, options) as transport:
            frame = job.payload.observation(number)
            timesteps = count(0, job.spec.actions_per_chunk)
            _exchange(transport, frame, next(timesteps), job)
            connection.send(b"")
            has_begun = True
            exchanges: list[tuple[int, int]] = []
            while not connection.poll():
                if job.think_s:
                    time.sleep(job.think_s)
                exchanges.append(_exchange(transport, frame, next(timesteps), job))
        return np.array(exchanges, np.int64).tobytes()
    except AsyncDeltaError as exc:
        if not has_begun:
            connection.send(exc)
        return exc


def _exchange(transport: Transport, frame: Observation, timestep: int, job: Job) -> tuple[int, int]:
    start_ns = time.monotonic_ns()
    observation = transport.loan_observation()
    for name, image in frame.images.items():
        np.copyto(observation.images[name], image)
    observation.state[...] = frame.state
    observation.task, observation.timestep = frame.task, timestep
    transport.send_observation(observation)
    chunk = transport.receive_actions(_ANSWER_TIMEOUT_S)
    end_ns = time.monotonic_ns()
    if chunk is None or chunk.timestep != timestep or chunk.actions.shape[1] != job.spec.action_dim:
        raise ProtocolError(f"the observation of timestep {timestep} was answered with {chunk}")
    return end_ns, end_ns - start_ns
