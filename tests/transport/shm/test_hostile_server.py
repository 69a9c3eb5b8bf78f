"""A hostile server: whatever it says or writes, the client ends with an error of the transport."""

from __future__ import annotations

import mmap
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shm_actor import COLUMNS, ROWS, make_observation, policy_spec
from shm_hostility import FUZZ_ROUNDS, LAYOUT, map_file, try_release
from shm_processes import left_behind

from async_delta_inference.errors import (
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportTimeout,
)
from async_delta_inference.transport import TransportOptions
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.server.bell import SemaphoreBell
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import Connection
from async_delta_inference.transport.shm.shared.handshake import Hello
from async_delta_inference.transport.shm.shared.layout import CHUNK_KIND, ERROR_KIND
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames


def chunk_of(segment: Segment) -> NDArray[np.float32]:
    """The rows of the first reply."""
    return np.ndarray((ROWS, COLUMNS), np.float32, segment.action_bytes[1])


class HostileServer:
    """Shakes hands as it should with one client that connects in a thread of its own."""

    def __init__(self) -> None:
        self.path = rendezvous.socket_path("there")
        self.listener = rendezvous.listen(self.path)
        self.semaphores: list[mmap.mmap] = []
        self.bell = SemaphoreBell(rendezvous.server_key(self.path))

    def close(self) -> None:
        self.bell.take_down(rendezvous.server_key(self.path))
        self.bell.close()
        self.listener.close()
        self.path.unlink(missing_ok=True)

    def accept(self) -> tuple[Connection, Hello]:
        connection = Connection(self.listener.accept()[0])
        return connection, Hello.from_message(connection.receive(20.0))

    def attach(self) -> tuple[Connection, Segment]:
        connection, hello = self.accept()
        names = SegmentNames(rendezvous.server_key(self.path), hello.session)
        segment = Segment.create(names, LAYOUT)
        connection.send(handshake.offer(LAYOUT))
        handshake.check_kind(connection.receive(20.0), "attached")
        self.semaphores = [map_file(f"/dev/shm/sem.{name[1:]}") for name in names.semaphores]
        names.unlink()
        connection.send(handshake.ready("nothing"))
        return connection, segment


@contextmanager
def session_with_a_hostile_server(
    server: HostileServer | None = None,
) -> Iterator[tuple[ShmTransport, Connection, Segment]]:
    server = server or HostileServer()
    held: list[Any] = []
    thread = threading.Thread(target=lambda: held.extend(server.attach()))
    thread.start()
    options = TransportOptions(connect_timeout_s=20.0, inference_timeout_s=0.5)
    with ShmTransport("there", options) as transport:
        transport.connect(policy_spec())
        thread.join()
        connection, segment = held
        yield transport, connection, segment
        connection.shut_down()
        connection.close()
        segment.close()
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": "offer"},
        {"kind": "nonsense"},
        {**handshake.offer(LAYOUT), "segment_bytes": 4096},
        {**handshake.offer(LAYOUT), "segment_bytes": 1 << 39},
        {**handshake.offer(LAYOUT), "observation_slots": 1 << 39},
        {**handshake.offer(LAYOUT), "action_slots": -1},
        {**handshake.offer(LAYOUT), "max_task_bytes": 1},
        handshake.offer(LAYOUT),  # without a segment
    ],
)
def test_absurd_offer(shm_folder: Path, answer: dict[str, Any]) -> None:
    server = HostileServer()

    def serve() -> None:
        connection, _ = server.accept()
        connection.send(answer)
        with pytest.raises(PeerGoneError):
            connection.receive(20.0)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with ShmTransport("there") as transport, pytest.raises((ProtocolError, SetupRefusedError)):
        transport.connect(policy_spec())
    thread.join()
    server.close()
    assert left_behind(shm_folder) == []


@pytest.mark.parametrize(
    "fields",
    [
        (2, 1, 0.0, 0, CHUNK_KIND, 1, 0),
        (1, 2, 0.0, 0, CHUNK_KIND, 1, 0),  # a timestep that was never sent
        (1, 1, float("nan"), 0, CHUNK_KIND, 1, 0),
        (1, 1, 0.0, 0, 0, 1, 0),
        (1, 1, 0.0, 0, 9, 1, 0),
        (1, 1, 0.0, 0, CHUNK_KIND, 0, 0),
        (1, 1, 0.0, 0, CHUNK_KIND, ROWS + 1, 0),
        (1, 1, 0.0, 0, CHUNK_KIND, 2**32 - 1, 0),
        (1, 1, 0.0, 0, ERROR_KIND, 0, 2**32 - 1),
    ],
)
def test_absurd_reply_is_a_protocol_error_that_sticks(shm_folder: Path, fields: tuple[Any, ...]) -> None:
    with session_with_a_hostile_server() as (transport, _, segment):
        transport.send_observation(make_observation(1))
        segment.action_writer()._store(LAYOUT.action_records_offset + 64, *fields)
        segment.actions_ready.release()
        for _ in range(2):
            with pytest.raises(ProtocolError):
                transport.receive_actions(5.0)
        with pytest.raises(ProtocolError):
            transport.send_observation(make_observation(2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (ROWS - 1, COLUMNS - 1)])
def test_actions_that_are_not_finite_are_a_protocol_error(
    shm_folder: Path, value: float, where: tuple[int, int]
) -> None:
    with session_with_a_hostile_server() as (transport, _, segment):
        transport.send_observation(make_observation(1))
        chunk_of(segment)[...] = 3e38  # large, and finite
        chunk_of(segment)[where] = value
        writer = segment.action_writer()
        writer.publish(1, 0.0, 0, CHUNK_KIND, ROWS, 0)
        with pytest.raises(ProtocolError, match="finite"):
            transport.receive_actions(5.0)


def test_large_finite_actions_pass(shm_folder: Path) -> None:
    with session_with_a_hostile_server() as (transport, _, segment):
        transport.send_observation(make_observation(1))
        chunk_of(segment)[...] = np.finfo(np.float32).max
        segment.action_writer().publish(1, 0.0, 0, CHUNK_KIND, ROWS, 0)
        chunk = transport.receive_actions(5.0)
        assert chunk is not None
        assert (chunk.actions == np.finfo(np.float32).max).all()


def test_server_that_keeps_slots_is_a_protocol_error(shm_folder: Path) -> None:
    with session_with_a_hostile_server() as (transport, _, segment):
        for timestep in range(LAYOUT.observation_slots):
            transport.send_observation(make_observation(timestep))
            segment.observations_ready.acquire(5.0)
        with pytest.raises(ProtocolError, match="give their slots back"):
            transport.send_observation(make_observation(9))


def test_random_bytes_from_a_server(shm_folder: Path) -> None:
    rng = random.Random(3)
    for _ in range(FUZZ_ROUNDS // 3):
        server = HostileServer()
        with session_with_a_hostile_server(server) as (transport, connection, segment):
            start_s = time.monotonic()
            with suppress(ProtocolError, PeerGoneError):  # Anything else is a failure.
                for timestep in range(8):
                    transport.send_observation(make_observation(timestep))
                    _do_harm(rng, timestep, connection, segment)
                    if rng.randrange(4) == 0:
                        # Counts of tokens and waiters, as in the client's case above.
                        rng.choice(server.semaphores)[:8] = rng.randbytes(8)
                    with suppress(PolicyError, TransportTimeout):
                        transport.receive_actions(0.1)
            assert time.monotonic() - start_s < 20.0


def _do_harm(rng: random.Random, timestep: int, connection: Connection, segment: Segment) -> None:
    buffer = segment._buffer
    # Anywhere, or in what the client reads.
    start = rng.randrange(rng.choice([0, LAYOUT.action_records_offset]), len(buffer))
    end = min(len(buffer), start + rng.randrange(1, 3000))
    buffer[start:end] = rng.randbytes(end - start)
    if rng.randrange(2):
        segment.action_writer().publish(timestep, 0.0, 0, rng.randrange(5), rng.randrange(12), 5)
    try_release(segment.actions_ready, rng.randrange(3))
    if rng.randrange(4) == 0:
        with suppress(OSError):
            connection._socket.send(rng.randbytes(30))
