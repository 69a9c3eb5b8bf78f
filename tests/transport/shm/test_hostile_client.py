"""A hostile client: whatever it says or writes, the server ends its session and serves the next."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from shm_actor import ChecksumPolicy, expected_actions, make_observation, policy_spec, shm_server
from shm_hostility import FUZZ_ROUNDS, HELLO, LAYOUT, map_file, try_release
from shm_processes import eventually, left_behind

from async_delta_inference.errors import (
    PeerGoneError,
    SetupRefusedError,
)
from async_delta_inference.transport import Server, TransportOptions
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import MAX_PACKET_BYTES, Connection
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames


@pytest.fixture
def server(shm_folder: Path) -> Iterator[Server]:
    server = shm_server("here", ChecksumPolicy())
    server.start()
    yield server
    server.stop()
    assert left_behind(shm_folder) == []


def serve_an_honest_client() -> None:
    with ShmTransport("here", TransportOptions(connect_timeout_s=20.0)) as transport:
        transport.connect(policy_spec())
        observation = make_observation(3)
        transport.send_observation(observation)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tobytes() == expected_actions(observation).tobytes()


@contextmanager
def raw_client() -> Iterator[Connection]:
    connection = Connection(rendezvous.connect(rendezvous.socket_path("here"), 5.0))
    yield connection
    connection.shut_down()
    connection.close()


def test_random_handshakes(server: Server) -> None:
    rng = random.Random(1)
    packet = msgpack.packb(HELLO)
    for _ in range(FUZZ_ROUNDS):
        with raw_client() as connection:
            damaged = bytearray(packet[: rng.randrange(1, len(packet) + 1)])
            for _ in range(rng.randrange(4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            if damaged == packet:
                continue
            connection._socket.send(damaged)
            try:
                while connection.receive(5.0)["kind"] != "refused":
                    connection._socket.send(rng.randbytes(20))
            except PeerGoneError:
                continue
            except BrokenPipeError:
                continue
    serve_an_honest_client()


@pytest.mark.parametrize("packet", [b"x" * (MAX_PACKET_BYTES + 1), msgpack.packb({"kind": "attached"}), b""])
def test_packet_that_is_none(server: Server, packet: bytes) -> None:
    with raw_client() as connection:
        connection._socket.setsockopt(1, 7, 1 << 20)  # SOL_SOCKET, SO_SNDBUF
        connection._socket.send(packet)
        with pytest.raises((PeerGoneError, SetupRefusedError)):
            handshake.check_kind(connection.receive(5.0), "ready")
    serve_an_honest_client()


def test_many_silent_connections_do_not_shut_the_door(server: Server) -> None:
    silent = [Connection(rendezvous.connect(rendezvous.socket_path("here"), 5.0)) for _ in range(30)]
    for connection in silent:
        connection.shut_down()
        connection.close()
    eventually(lambda: not server.listeners[0]._connections, "the connections are gone")
    serve_an_honest_client()


def test_connections_that_say_nothing_keep_nobody_out(server: Server) -> None:
    """More of them than the server takes, and all stay: an honest client is served at once all the same."""
    silent = [Connection(rendezvous.connect(rendezvous.socket_path("here"), 5.0)) for _ in range(100)]
    serve_an_honest_client()
    for connection in silent:
        connection.shut_down()
        connection.close()
    eventually(lambda: not server.listeners[0]._connections, "the connections are gone")


class HostileClient:
    """Shakes hands as it should, and keeps writable maps of everything."""

    def __init__(self, session: str) -> None:
        path = rendezvous.socket_path("here")
        names = SegmentNames(rendezvous.server_key(path), session)
        self.connection = Connection(rendezvous.connect(path, 20.0))
        self.connection.send({**HELLO, "session": session})
        layout = handshake.read_offer(self.connection.receive(20.0), policy_spec())
        self.segment = Segment.attach(names, layout)
        self.semaphores = [map_file(f"/dev/shm/sem.{name[1:]}") for name in names.semaphores]
        self.connection.send(handshake.ATTACHED)
        handshake.check_kind(self.connection.receive(20.0), "ready")
        self.writer = self.segment.observation_writer()

    def close(self) -> None:
        self.connection.shut_down()
        self.connection.close()
        self.segment.close()
        for semaphore in self.semaphores:
            semaphore.close()


def test_random_bytes_over_the_segment_and_its_semaphores(server: Server) -> None:
    rng = random.Random(2)
    for round_ in range(FUZZ_ROUNDS):
        client = HostileClient(f"{round_:016x}")
        buffer = client.segment._buffer
        for _ in range(rng.randrange(1, 6)):
            kind = rng.randrange(4)
            if kind == 0:  # anywhere
                start = rng.randrange(len(buffer))
                end = min(len(buffer), start + rng.randrange(1, 400))
                buffer[start:end] = rng.randbytes(end - start)
            elif kind == 1:  # the records
                start, end = LAYOUT.observation_records_offset, LAYOUT.observation_slots_offset
                buffer[start:end] = rng.randbytes(end - start)
            elif kind == 2 and round_ % 4 == 0:
                # Its counts of tokens and waiters. Damage to the rest of it makes glibc abort: see docs/design/shm.md.
                rng.choice(client.semaphores)[:8] = rng.randbytes(8)
            else:
                try_release(client.segment.observations_ready, rng.randrange(1, 10))
            if rng.randrange(2):
                _publish_damaged(client, rng)
        client.close()
    serve_an_honest_client()


def _publish_damaged(client: HostileClient, rng: random.Random) -> None:
    """A well-formed record with one absurd field."""
    layout = client.segment.layout
    fields: list[Any] = [1, 5, 0, 0.0, 0, 0, 0, 1]
    which = rng.randrange(len(fields))
    choices = [0, 2**31, 2**32 - 1] if which > 3 else [0, 2, 2**63, 2**64 - 1]
    fields[which] = rng.choice([float("nan"), float("inf"), -1e308]) if which == 3 else rng.choice(choices)
    client.segment.observation_writer()._store(layout.observation_records_offset + 64, *fields)
    try_release(client.segment.observations_ready, 1)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ((1, 5, 0, 0.0, 4, 0, 0, 1), True),  # a slot that is not there
        ((1, 5, 0, 0.0, 2**32 - 1, 0, 0, 1), True),
        ((1, 5, 0, 0.0, 0, 1, 4097, 1), True),  # a task beyond its slot
        ((2, 5, 0, 0.0, 0, 0, 0, 1), True),  # a number out of turn
        ((1, 5, 0, float("nan"), 0, 0, 0, 1), True),
        ((1, 5, 0, float("inf"), 0, 0, 0, 1), True),
        ((1, 2**64 - 1, 2**64 - 1, 0.0, 0, 0, 0, 2**32 - 1), False),  # odd, and harmless
    ],
)
def test_absurd_record_ends_the_session(server: Server, fields: tuple[Any, ...], ends: bool) -> None:
    client = HostileClient("f" * 16)
    client.writer._store(LAYOUT.observation_records_offset + 64, *fields)
    client.segment.observations_ready.release()
    if ends:
        assert "observation record 1" in handshake.reason_of(client.connection.receive(10.0))
        with pytest.raises(PeerGoneError):
            client.connection.receive(10.0)
    else:
        client.segment.actions_ready.acquire(10.0)
    client.close()
    serve_an_honest_client()


def test_task_that_is_not_utf8_ends_the_session(server: Server) -> None:
    client = HostileClient("e" * 16)
    client.segment.tasks[0][:2] = b"\xff\xfe"
    client.writer._store(LAYOUT.observation_records_offset + 64, 1, 5, 0, 0.0, 0, 1, 2, 1)
    client.segment.observations_ready.release()
    assert "UTF-8" in handshake.reason_of(client.connection.receive(10.0))
    client.close()
    serve_an_honest_client()


def test_talk_in_the_middle_of_a_session_ends_it(server: Server) -> None:
    client = HostileClient("d" * 16)
    client.connection.send(HELLO)
    assert "middle of a session" in handshake.reason_of(client.connection.receive(10.0))
    client.close()
    serve_an_honest_client()
