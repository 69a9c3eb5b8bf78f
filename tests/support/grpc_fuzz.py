"""Mutated messages, broken streams, wrong tokens and half-open calls against both sides of our own protocol.

The short form is in the tests. The long one::

    python tests/support/grpc_fuzz.py SECONDS

To grow it: another kind of attack is another function in `SERVER_ATTACKS` or another reply in `HostileServer`.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil

from async_delta_inference.errors import TransportError
from async_delta_inference.transport import GrpcOptions, LinkOptions, TransportOptions, connect, serve
from async_delta_inference.transport.grpc import extras, greeting, native, replies
from async_delta_inference.transport.grpc.observations import Packed
from async_delta_inference.transport.messages import ActionChunk
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    contract_observation,
    expect_answer,
)
from async_delta_inference.transport.testing.messages import scripted_actions
from async_delta_inference.transport.testing.policy import scripted_function

TOKEN = "fuzz" * 8
CALL_S = 2.0
SERVICE_S = 60.0
FEATURES = CONTRACT_POLICY.features
HASTY = TransportOptions(connect_timeout_s=10.0, setup_timeout_s=2.0, inference_timeout_s=1.0, reconnect_timeout_s=0.0)


def mutated(random_: random.Random, data: bytes) -> bytes:
    """The message with some of its bytes changed, cut, doubled or replaced."""
    out = bytearray(data)
    for _ in range(random_.randint(0, 4)):
        kind, at = random_.randrange(5), random_.randrange(len(out) + 1)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] = random_.randrange(256)
        elif kind == 1:
            del out[at : at + random_.randint(1, 40)]
        elif kind == 2:
            out[at:at] = random_.randbytes(random_.randint(1, 40))
        elif kind == 3:
            out[at:at] = out[at : at + random_.randint(1, 200)]
        else:
            del out[at:]
    return bytes(out)


def hello(random_: random.Random, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"session": random_.randbytes(16), "spec": CONTRACT_POLICY}
    return greeting.encode_hello(greeting.Hello(**fields | changes))


def observation(timestep: int, number: int = 1) -> list[bytes]:
    return Packed.of(contract_observation(timestep), FEATURES, "raw", number, True).messages


# Against the server. Each is a list of messages of one stream.

Attack = Callable[[random.Random], list[bytes]]


def broken_hello(random_: random.Random) -> list[bytes]:
    return [mutated(random_, hello(random_)) for _ in range(2)]


def broken_observations(random_: random.Random) -> list[bytes]:
    whole = [piece for timestep in range(4) for piece in observation(timestep, timestep + 1)]
    return [hello(random_), *(mutated(random_, piece) for piece in whole)]


def order_reversed(random_: random.Random) -> list[bytes]:
    messages = [hello(random_), *observation(3), native.goodbye(), hello(random_, resumes=True, received=9)]
    random_.shuffle(messages)
    return messages


def lying_sizes(random_: random.Random) -> list[bytes]:
    message = native.new_client_message()
    message.observation.array_bytes = random_.choice([0, 1, 2**40, 2**63])
    message.observation.arrays = random_.randbytes(random_.choice([0, 10, 3000]))
    more = native.new_client_message()
    more.more = random_.randbytes(100)
    return [hello(random_), message.SerializeToString(), *[more.SerializeToString()] * random_.randint(0, 5)]


def noise(random_: random.Random) -> list[bytes]:
    return [random_.randbytes(random_.randint(0, 300)) for _ in range(3)]


def silence(random_: random.Random) -> list[bytes]:
    return [] if random_.random() < 0.5 else [hello(random_)]


SERVER_ATTACKS: list[Attack] = [broken_hello, broken_observations, order_reversed, lying_sizes, noise, silence]


def attack_once(random_: random.Random, channel: grpc.Channel) -> str:
    """One stream with one attack in it; how it ended."""
    messages = random_.choice(SERVER_ATTACKS)(random_)
    stays = threading.Event()
    holds_open = random_.random() < 0.5

    def send() -> Iterator[bytes]:
        yield from messages
        if holds_open:
            stays.wait(CALL_S)

    token = TOKEN if random_.random() < 0.9 else random_.choice(["", TOKEN[:-1], "x" * 400])
    call = channel.stream_stream(native.METHOD)(send(), timeout=CALL_S, metadata=((extras.TOKEN, token),))
    try:
        if random_.random() < 0.7:
            for _ in zip(range(random_.randint(0, 3)), call, strict=False):
                pass
    except grpc.RpcError:
        pass
    stays.set()
    call.cancel()
    try:
        for _ in call:
            pass
    except grpc.RpcError as exc:
        return exc.code().name  # type: ignore[attr-defined, no-any-return]
    return "ended"


# Against the client.


class HostileServer:
    """Answers a client's stream with what no server sends."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0
        self._threads = ThreadPoolExecutor(8)
        self._server = grpc.server(self._threads)
        handlers = {"Session": grpc.stream_stream_rpc_method_handler(self._converse)}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(native.SERVICE, handlers)])
        self.uri = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0.5).wait()
        self._threads.shutdown()

    def _converse(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self._count += 1
        random_ = random.Random(self._seed * 1_000_003 + self._count)
        next(requests, None)
        ready = greeting.ready(greeting.Ready("hostile", 1, bool(random_.getrandbits(1)), random_.randrange(3)))
        yield mutated(random_, ready) if random_.random() < 0.5 else ready
        if random_.random() < 0.2:
            context.abort(random_.choice(list(grpc.StatusCode)[1:]), "hostile")
        for number in range(random_.randint(0, 60)):
            chunk = ActionChunk(scripted_actions(0, 0), random_.choice([0, 0, 0, 5, -1]))
            reply = replies.encode_reply(random_.choice([number + 1] * 9 + [0, 7, 2**60]), chunk)
            yield mutated(random_, reply) if random_.random() < 0.3 else reply
        if random_.random() < 0.5:
            yield greeting.bye("hostile", bool(random_.getrandbits(1)))


def visit_once(uri: str) -> str:
    """A client of ours at a hostile server: it ends with an error of ours, or with an answer."""
    try:
        with connect(uri, CONTRACT_POLICY, HASTY) as client:
            client.send_observation(contract_observation(0))
            for _ in range(5):
                client.receive_actions(0.2)
    except TransportError as exc:
        return type(exc).__name__
    return "answered"


# Both.


def fuzz(seconds: float, seed: int, folder: Path, threads: int = 3) -> dict[str, Any]:
    """Attack both sides for a while, then see whether an honest client is served, and what was left.

    Raises:
        AssertionError: It is not, or the memory grew.
    """
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    link = LinkOptions(GrpcOptions(token_file=token_file))
    until_s = time.monotonic() + seconds
    ends: Counter[str] = Counter()
    process = psutil.Process()
    memory_mb: list[float] = []
    hostile = HostileServer(seed)
    with serve(scripted_function, "grpc://127.0.0.1:0", max_sessions=8, link=link) as server:
        address = server.uris[0].removeprefix("grpc://")

        def attack(number: int) -> None:
            random_ = random.Random(seed * 100 + number)
            while time.monotonic() < until_s:
                channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
                for _ in range(20):
                    ends["server " + attack_once(random_, channel)] += 1
                channel.close()

        def visit() -> None:
            while time.monotonic() < until_s:
                ends["client " + visit_once(hostile.uri)] += 1

        def be_honest() -> None:
            """The others may cost it time, and a seat for a moment, but no answer."""
            options = TransportOptions(inference_timeout_s=SERVICE_S, link=link)
            while time.monotonic() < until_s:
                try:
                    client = connect(server.uris[0], CONTRACT_POLICY, options)
                except TransportError:
                    ends["honest refused"] += 1
                    continue
                with client:
                    for timestep in range(20):
                        client.send_observation(contract_observation(timestep))
                        expect_answer(client.receive_actions(SERVICE_S), timestep)
                ends["honest served"] += 1
                gc.collect()
                memory_mb.append(process.memory_info().rss / 1e6)

        # grpcio takes the lock of a call that is collected, whichever of its locks the collecting thread holds: with
        # thousands of calls two threads then wait for each other for ever. So they are collected where none is held.
        gc.disable()
        try:
            with ThreadPoolExecutor(threads + 2) as pool:
                works = [pool.submit(attack, number) for number in range(threads)]
                works += [pool.submit(visit), pool.submit(be_honest)]
                for work in works:
                    work.result(seconds + 10 * SERVICE_S)
        finally:
            gc.enable()
        with connect(server.uris[0], CONTRACT_POLICY, TransportOptions(link=link)) as client:
            client.send_observation(contract_observation(1))
            expect_answer(client.receive_actions(SERVICE_S), 1)
    hostile.stop()
    return {"ends": dict(ends), "memory_mb": memory_mb}


if __name__ == "__main__":
    import logging
    import tempfile

    logging.disable(logging.CRITICAL)  # A line for each of them.
    with tempfile.TemporaryDirectory() as name:
        found = fuzz(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(name))
    sizes = found["memory_mb"]
    quarters = [sizes[len(sizes) * part // 4 : len(sizes) * (part + 1) // 4] for part in range(4)]
    print(found["ends"])
    print("memory, MB, median of each quarter:", [round(sorted(q)[len(q) // 2], 1) if q else None for q in quarters])
    print("threads left:", threading.active_count())
