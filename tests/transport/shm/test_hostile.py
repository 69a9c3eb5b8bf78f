"""A hostile peer: whatever it says or writes, the other side ends with a transport error and serves the next."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shm_actor import COLUMNS, ROWS, ChecksumPolicy, expected_actions, make_observation, policy_spec, shm_server
from shm_processes import eventually, left_behind

from async_delta_inference.errors import (
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportTimeout,
)
from async_delta_inference.transport import Server, TransportOptions
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.server.bell import SemaphoreBell
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import MAX_PACKET_BYTES, Connection, _decode
from async_delta_inference.transport.shm.shared.handshake import Hello
from async_delta_inference.transport.shm.shared.layout import CHUNK_KIND, ERROR_KIND, SegmentLayout
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames

LAYOUT = SegmentLayout.of_session(policy_spec())
HELLO = dict(Hello("0123456789abcdef", policy_spec(), 1).to_message())
FUZZ_ROUNDS = 60
BOUNDED = settings(max_examples=150, deadline=None)

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


# The handshake as a function of bytes.


@BOUNDED
@given(st.binary(max_size=400))
def test_random_packet_is_a_map_or_a_protocol_error(packet: bytes) -> None:
    try:
        message = _decode(packet)
    except ProtocolError:
        return
    assert isinstance(message, dict)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x91" * 2000 + b"\x90",  # lists in lists
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb({"kind": b"bytes"}),
        msgpack.packb({"kind": msgpack.ExtType(5, b"x")}),
        msgpack.packb({1: 2}),
        msgpack.packb([1, 2]),
        msgpack.packb({"kind": "hello"}) + b"\x00",
        b"\x81\xa4kind\xa2\xff\xfe",
    ],
)
def test_absurd_packet_is_a_protocol_error(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        _decode(packet)


def test_truncated_hello_is_a_protocol_error() -> None:
    packet = msgpack.packb(HELLO)
    for length in range(len(packet)):
        with pytest.raises(ProtocolError):
            _decode(packet[:length])


@BOUNDED
@given(st.dictionaries(st.sampled_from([*HELLO, "extra"]), anything, min_size=1, max_size=3), st.booleans())
def test_changed_hello_is_read_or_refused(changes: dict[str, Any], drop: bool) -> None:
    message = {**HELLO, **changes}
    if drop:
        message.pop(next(iter(changes)))
    try:
        hello = Hello.from_message(message)
    except (ProtocolError, SetupRefusedError):
        return
    SegmentLayout.of_session(hello.spec)


@BOUNDED
@given(st.dictionaries(st.sampled_from(["kind", *handshake.offer(LAYOUT), "extra"]), anything, max_size=3))
def test_changed_offer_is_read_or_refused(changes: dict[str, Any]) -> None:
    message = {**handshake.offer(LAYOUT), **changes}
    try:
        layout = handshake.read_offer(message, policy_spec())
    except (ProtocolError, SetupRefusedError):
        return
    assert layout.segment_bytes == message["segment_bytes"]


@BOUNDED
@given(anything, st.sampled_from(["refused", "bye", "ready", "attached", "offer"]))
def test_changed_reason_is_read_or_refused(reason: object, kind: str) -> None:
    for read in (handshake.reason_of, lambda message: handshake.check_kind(message, "ready")):
        try:
            read({"kind": kind, "reason": reason})  # type: ignore[operator]
        except PeerGoneError:
            assert kind == "bye"
        except (ProtocolError, SetupRefusedError):
            continue


# A hostile client and the real server.


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
        self.semaphores = [_map_file(f"/dev/shm/sem.{name[1:]}") for name in names.semaphores]
        self.connection.send(handshake.ATTACHED)
        handshake.check_kind(self.connection.receive(20.0), "ready")
        self.writer = self.segment.observation_writer()

    def close(self) -> None:
        self.connection.shut_down()
        self.connection.close()
        self.segment.close()
        for semaphore in self.semaphores:
            semaphore.close()


def _map_file(path: str) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, 32)
    finally:
        os.close(descriptor)


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
                _try_release(client.segment.observations_ready, rng.randrange(1, 10))
            if rng.randrange(2):
                _publish_damaged(client, rng)
        client.close()
    serve_an_honest_client()


def _try_release(semaphore: Any, count: int) -> None:
    for _ in range(count):
        try:
            semaphore.release()
        except OSError:
            return


def _publish_damaged(client: HostileClient, rng: random.Random) -> None:
    """A well-formed record with one absurd field."""
    layout = client.segment.layout
    fields: list[Any] = [1, 5, 0, 0.0, 0, 0, 0, 1]
    which = rng.randrange(len(fields))
    choices = [0, 2**31, 2**32 - 1] if which > 3 else [0, 2, 2**63, 2**64 - 1]
    fields[which] = rng.choice([float("nan"), float("inf"), -1e308]) if which == 3 else rng.choice(choices)
    client.segment.observation_writer()._store(layout.observation_records_offset + 64, *fields)
    _try_release(client.segment.observations_ready, 1)


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


# A hostile server and the real client.


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
        self.semaphores = [_map_file(f"/dev/shm/sem.{name[1:]}") for name in names.semaphores]
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
    _try_release(segment.actions_ready, rng.randrange(3))
    if rng.randrange(4) == 0:
        with suppress(OSError):
            connection._socket.send(rng.randbytes(30))
