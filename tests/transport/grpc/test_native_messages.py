"""Messages of our own protocol that no honest peer sends, one by one; the fuzz sends what nobody has thought of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_fuzz import FEATURES, HASTY, observation
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from async_delta_inference.errors import (
    InvalidMessageError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportError,
)
from async_delta_inference.transport import ActionChunk, ObservationFeatures, Server, SessionSpec, connect, serve
from async_delta_inference.transport.grpc import greeting, image_codecs, native, replies
from async_delta_inference.transport.grpc.observations import Assembly, Packed
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
    expect_answer,
)

SESSION = b"s" * 16


def hello(**changes: Any) -> bytes:
    """A hello with some of its fields overwritten."""
    message = native.decode_client(greeting.encode_hello(greeting.Hello(SESSION, CONTRACT_POLICY)))
    for name, value in changes.items():
        if isinstance(value, list):
            message.hello.ClearField(name)
            for item in value:
                if isinstance(item, dict):
                    message.hello.cameras.add(**item)
                else:
                    getattr(message.hello, name).append(item)
        else:
            setattr(message.hello, name, value)
    return message.SerializeToString()


CAMERA = {"name": "front", "height": 12, "width": 16, "channels": 3}


# What the server reads.


def test_hello_is_read_as_it_was_written() -> None:
    told = greeting.Hello(SESSION, CONTRACT_POLICY, resumes=True, received=7, image_encoding="png")
    assert greeting.read_hello(greeting.encode_hello(told)) == told


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 99}, SetupRefusedError),
        ({"session": b"short"}, ProtocolError),
        ({"image_encoding": "gif"}, SetupRefusedError),
        ({"state_names": []}, SetupRefusedError),
        ({"state_names": ["x", "x"]}, SetupRefusedError),
        ({"state_names": ["x" * 1000]}, SetupRefusedError),
        ({"state_names": [f"{i}" for i in range(5000)]}, SetupRefusedError),
        ({"cameras": [CAMERA | {"height": 0}]}, SetupRefusedError),
        ({"cameras": [CAMERA | {"height": 2**32 - 1, "width": 2**32 - 1}]}, SetupRefusedError),
        ({"cameras": [CAMERA, CAMERA]}, SetupRefusedError),
        ({"cameras": [CAMERA | {"name": f"c{i}"} for i in range(100)]}, SetupRefusedError),
        ({"actions_per_chunk": 0}, SetupRefusedError),
        ({"actions_per_chunk": 2**62}, SetupRefusedError),
        ({"action_dim": -1}, SetupRefusedError),
        ({"pretrained_name_or_path": "x" * 10_000}, SetupRefusedError),
        ({"options": b""}, SetupRefusedError),
        ({"options": b"\xc1"}, SetupRefusedError),
        ({"options": b"\xdd\xff\xff\xff\xff"}, SetupRefusedError),
        ({"options": b"\x95\xff\xa0\x90\x90\x90"}, SetupRefusedError),
    ],
)
def test_hello_that_cannot_be_served_is_refused(changes: dict[str, Any], error: type[TransportError]) -> None:
    with pytest.raises(error):
        greeting.read_hello(hello(**changes))


@pytest.mark.parametrize("data", [b"", b"\xff", native.goodbye(), observation(0)[0]])
def test_what_is_no_hello_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        greeting.read_hello(data)


def assemble(messages: list[bytes], encoding: str = "raw") -> Any:
    assembly = Assembly(FEATURES, 1, encoding)
    whole = None
    for data in messages:
        whole = assembly.add_whole(data) or assembly.add(native.decode_client(data))
    return whole


def test_short_way_and_protobufs_agree() -> None:
    (data,) = observation(3)
    message = native.decode_client(data)
    assert message.SerializeToString() == data
    assert len(message.observation.arrays) == message.observation.array_bytes
    short = Assembly(FEATURES, 1, "raw").add_whole(data)
    long = Assembly(FEATURES, 1, "raw").add(message)
    assert short is not None
    assert long is not None
    for got in (short.observation, long.observation):
        got.check(FEATURES)
        assert got.timestep == 3
        np.testing.assert_array_equal(got.state, contract_observation(3).state)
        np.testing.assert_array_equal(got.images["wrist"], contract_observation(3).images["wrist"])
        assert not got.state.flags.writeable
        assert not got.images["front"].flags.writeable


@given(st.binary(max_size=200), st.integers(0, 100))
def test_short_way_takes_nothing_that_protobuf_reads_otherwise(data: bytes, size: int) -> None:
    split = native.split_observation(data, size)
    if split is not None:
        message = native.decode_client(data)
        assert message.observation.arrays == bytes(split[1])


def changed(**changes: Any) -> list[bytes]:
    message = native.decode_client(observation(0)[0])
    for name, value in changes.items():
        if name == "image_bytes":
            message.observation.image_bytes.extend(value)
        else:
            setattr(message.observation, name, value)
    return [message.SerializeToString()]


def more(data: bytes) -> bytes:
    message = native.new_client_message()
    message.more = data
    return message.SerializeToString()


RAW_BYTES = native.step_bytes(FEATURES)


@pytest.mark.parametrize(
    "messages",
    [
        changed(timestep=-1),
        changed(episode=-5),
        changed(timestamp_s=float("nan")),
        changed(delay=2**31),
        changed(task="x" * 5000),
        changed(array_bytes=2**63),
        changed(array_bytes=RAW_BYTES + 1),
        changed(arrays=b"x" * (RAW_BYTES + 1)),
        changed(image_bytes=[4]),
        [more(b"x" * 10)],
        [changed(arrays=b"")[0], changed(arrays=b"")[0]],
        [changed(arrays=b"")[0], more(b"x" * (RAW_BYTES + 1))],
        [greeting.encode_hello(greeting.Hello(SESSION, CONTRACT_POLICY))],
        [b""],
    ],
)
def test_observation_that_was_not_agreed_is_refused(messages: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        assemble(messages)


# Images.

SHAPE = (12, 16, 3)


def png(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        png((16, 13)),
        png((16, 12), "L"),
        png((16, 12), kind="GIF"),
        png((16, 12))[:50],
        png((20_000, 20_000), "1"),  # 50 KB that would become 400 MB
    ],
)
def test_image_that_is_not_what_was_agreed_is_not_decoded(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        image_codecs.decode(data, "png", SHAPE)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_encoded_noise_is_within_its_bound(encoding: str) -> None:
    for shape in ((64, 64, 3), (1, 1, 1), (480, 640, 3)):
        image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        assert len(image_codecs.encode(image, encoding)) <= image_codecs.most_bytes(shape)


def test_encoded_observation_with_an_image_too_large_is_refused() -> None:
    packed = Packed.of(contract_observation(0), FEATURES, "png", 1, True)
    assert assemble(packed.messages, "png").observation.timestep == 0
    message = native.decode_client(packed.messages[0])
    message.observation.image_bytes[0] = 10**9
    message.observation.array_bytes += 10**9
    with pytest.raises(ProtocolError):
        assemble([message.SerializeToString()], "png")


# A whole server.


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(ScriptedPolicy(), "grpc://127.0.0.1:0", max_sessions=2) as server:
        yield server


def test_client_at_fault_is_told_why_and_its_seat_is_free(server: Server) -> None:
    channel = grpc.insecure_channel(server.uris[0].removeprefix("grpc://"))
    for _ in range(4):  # more than there are seats
        messages = [greeting.encode_hello(greeting.Hello(SESSION, CONTRACT_POLICY)), *changed(timestep=-1)]
        *_, last = channel.stream_stream(native.METHOD)(iter(messages), timeout=WAIT_S)
        farewell = native.decode_server(last).bye
        assert farewell.is_final
        assert "timestep" in farewell.reason
    channel.close()
    with connect(server.uris[0], CONTRACT_POLICY) as client:
        client.send_observation(contract_observation(1))
        expect_answer(client.receive_actions(WAIT_S), 1)


def test_streams_that_say_nothing_keep_nobody_waiting(server: Server) -> None:
    channel = grpc.insecure_channel(server.uris[0].removeprefix("grpc://"))
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(10 * WAIT_S)
        yield from ()

    calls = [channel.stream_stream(native.METHOD)(silence()) for _ in range(100)]
    with connect(server.uris[0], CONTRACT_POLICY) as client:
        client.send_observation(contract_observation(1))
        expect_answer(client.receive_actions(WAIT_S), 1)
    over.set()
    for call in calls:
        call.cancel()
    channel.close()


# A server that means ill.

Replies = Callable[[], list[bytes]]


@contextmanager
def answering(*messages: bytes) -> Iterator[str]:
    """A server that answers any session with these messages, and then waits."""
    over = threading.Event()

    def converse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield greeting.ready(greeting.Ready("ill"))
        next(requests)
        yield from messages
        over.wait(WAIT_S)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        handlers = {"Session": grpc.stream_stream_rpc_method_handler(converse)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(native.SERVICE, handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"grpc://127.0.0.1:{port}"
        over.set()
        server.stop(1.0).wait()


def chunk(number: int = 1, timestep: int = 0, rows: int = 5, width: int = 3, value: float = 0.0) -> bytes:
    return replies.encode_reply(number, ActionChunk(np.full((rows, width), value, np.float32), timestep))


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (chunk(number=2), ProtocolError),
        (chunk(timestep=5), ProtocolError),
        (chunk(timestep=-1), ProtocolError),
        (chunk(rows=6), ProtocolError),
        (chunk(width=4), ProtocolError),
        (chunk(value=float("nan")), ProtocolError),
        (b"\xff\xff", ProtocolError),
        (b"", ProtocolError),
        (greeting.ready(greeting.Ready("again")), ProtocolError),
        (greeting.bye("you did wrong", is_final=True), ProtocolError),
        (greeting.bye("I go", is_final=False), PeerGoneError),
        (replies.encode_reply(1, PolicyError("it broke", 0)), PolicyError),
    ],
)
def test_reply_that_cannot_be_meant_is_an_error_at_once(reply: bytes, error: type[TransportError]) -> None:
    with answering(reply) as uri, connect(uri, CONTRACT_POLICY, HASTY) as client:
        client.send_observation(contract_observation(0))
        with pytest.raises(error):
            client.receive_actions(WAIT_S)


def test_reply_that_is_repeated_is_given_once() -> None:
    with answering(chunk(1), chunk(1), chunk(2)) as uri, connect(uri, CONTRACT_POLICY, HASTY) as client:
        client.send_observation(contract_observation(0))
        assert client.receive_actions(WAIT_S) is not None
        assert client.receive_actions(WAIT_S) is not None
        assert client.receive_actions(0.2) is None


def test_what_does_not_fit_into_a_handshake_is_said_here() -> None:
    features = ObservationFeatures(("x",), {"wide": (2**40, 1, 1)})
    with pytest.raises(InvalidMessageError):
        greeting.encode_hello(greeting.Hello(SESSION, SessionSpec("", "", 1, features, 1)))
