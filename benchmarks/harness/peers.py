"""Other ways to carry the same observation, each as its users use it: zmq with msgpack, websockets as openpi does it,
and iceoryx2. Their packages are the extra ``peers``; a row whose package is missing is left out, with a note.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import msgpack
import numpy as np

from async_delta_inference.transport import ActionChunk, Observation
from harness import peer_iceoryx2, peer_websockets, peer_zmq
from harness.null_policy import NullSession, check_reply, constant_chunk, mark_observation
from harness.payloads import Payload
from harness.statistics import Series

__all__ = ["PEERS", "open_peers"]

PEERS = {"zmq": peer_zmq, "websockets": peer_websockets, "iceoryx2": peer_iceoryx2}
"""Modules with ``serve(address, answer, size)`` and ``connect(address, size)`` by their package's name."""

_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 2.0


class PeerExchange:
    """One exchange with a peer: the observation packed, sent, and its chunk unpacked.

    Args:
        exchange: From a request's bytes to its reply's.
        payload: What is sent.
        series: Where its rounds go.
        server_pid: Of the process at the other end.
    """

    def __init__(self, exchange: Callable[[bytes], bytes], payload: Payload, series: Series, server_pid: int) -> None:
        self.series, self.server_pid = series, server_pid
        self._exchange, self._chunk_shape = exchange, payload.chunk
        self._observation = payload.observation()
        self._expected = constant_chunk(payload.chunk)
        self._numbers = count()
        self._replies: list[tuple[int, ActionChunk]] = []

    def once(self) -> int:
        """See `harness.exchanges.Exchange`."""
        number = next(self._numbers)
        mark_observation(self._observation, number)
        start_ns = time.perf_counter_ns()
        reply = msgpack.unpackb(self._exchange(_pack(self._observation)))
        actions = np.frombuffer(reply["actions"], np.float32).reshape(self._chunk_shape)
        duration_ns = time.perf_counter_ns() - start_ns
        self._replies.append((number, ActionChunk(actions, reply["timestep"])))
        return duration_ns

    def check(self) -> None:
        """See `harness.exchanges.Exchange`."""
        for number, chunk in self._replies:
            check_reply(chunk, number, self._expected)
        self._replies.clear()


def open_peers(stack: ExitStack, payload: Payload, say: Callable[[str], None]) -> list[PeerExchange]:
    """Every peer that is installed, with a server in a process of its own, until the stack is closed."""
    exchanges = []
    for name, module in PEERS.items():
        if find_spec(name) is None:
            say(f"{name} is not installed: its row is left out (pip install 'async-delta-inference[peers]')")
            continue
        address = stack.enter_context(tempfile.TemporaryDirectory(prefix="adi-bench-")) + f"/{name}"
        context = multiprocessing.get_context("spawn")
        ready, child = context.Pipe()
        process = context.Process(target=_serve, args=(name, address, payload, child), name=name, daemon=True)
        process.start()
        stack.callback(_end, process)
        if not ready.poll(_START_TIMEOUT_S):
            say(f"the server of {name} does not start: its row is left out")
            continue
        exchange = stack.enter_context(module.connect(address, message_size(payload)))
        assert process.pid is not None
        exchanges.append(PeerExchange(exchange, payload, Series(name, "copy", payload.name), process.pid))
    return exchanges


def _end(process: SpawnProcess) -> None:
    process.join(_END_TIMEOUT_S if process.name == "iceoryx2" else 0)
    process.kill()
    process.join()


def message_size(payload: Payload) -> int:
    """Upper bound of a packed observation or chunk, bytes."""
    return max(payload.observation_bytes, payload.chunk_bytes) + 4096


def _serve(name: str, address: str, payload: Payload, ready: Connection) -> None:
    session = NullSession(payload.spec())

    def answer(request: bytes) -> bytes:
        observation = _unpack(request)
        actions = session.answer(observation)
        reply: bytes = msgpack.packb({"actions": actions.tobytes(), "timestep": observation.timestep})
        return reply

    try:
        PEERS[name].serve(address, answer, message_size(payload), lambda: ready.send(os.getpid()))
    except (EOFError, BrokenPipeError):
        return


def _pack(observation: Observation) -> bytes:
    fields: dict[str, Any] = {
        "images": {name: (image.shape, image.tobytes()) for name, image in observation.images.items()},
        "state": observation.state.tobytes(),
        "task": observation.task,
        "timestep": observation.timestep,
    }
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpack(message: bytes) -> Observation:
    fields = msgpack.unpackb(message, max_bin_len=2**31 - 1)
    images = {name: np.frombuffer(data, np.uint8).reshape(shape) for name, (shape, data) in fields["images"].items()}
    return Observation(images, np.frombuffer(fields["state"], np.float32), fields["timestep"], fields["task"])
