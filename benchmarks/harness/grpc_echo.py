"""What gRPC itself takes for the same bytes: a call whose request and reply are bytes that nobody looks at."""

from __future__ import annotations

import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from harness.payloads import Payload
from harness.statistics import Series

__all__ = ["EchoExchange", "EchoServer"]

_METHOD = ("benchmark.Echo", "Call")
_SIZE = struct.Struct("<I")
_LARGEST_BYTES = 1 << 30


class EchoServer:
    """Answers with as many bytes as the first four of the request say."""

    def __init__(self) -> None:
        service, method = _METHOD
        options = [("grpc.max_receive_message_length", _LARGEST_BYTES)]
        self._server = grpc.server(ThreadPoolExecutor(4), options=options)
        handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(_answer)}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        self.uri = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Leave nothing behind."""
        self._server.stop(1.0).wait()


class EchoExchange:
    """One call; see `harness.exchanges.Exchange`.

    Args:
        uri: Of the server.
        payload: Whose bytes are sent, and whose chunk's bytes come back.
        server_pid: Of the server's process.
    """

    def __init__(self, uri: str, payload: Payload, server_pid: int) -> None:
        self.series = Series("grpc-echo", "copy", payload.name)
        self.server_pid = server_pid
        self._reply_bytes = payload.chunk_bytes
        self._request = _SIZE.pack(self._reply_bytes).ljust(payload.observation_bytes, b"x")
        self._channel = grpc.insecure_channel(uri.removeprefix("grpc://"))
        self._call: Any = self._channel.unary_unary("/" + "/".join(_METHOD))
        self._lengths: set[int] = set()

    def once(self) -> int:
        """See `harness.exchanges.Exchange`."""
        start_ns = time.perf_counter_ns()
        reply = self._call(self._request)
        duration_ns = time.perf_counter_ns() - start_ns
        self._lengths.add(len(reply))
        return duration_ns

    def check(self) -> None:
        """See `harness.exchanges.Exchange`."""
        assert self._lengths <= {self._reply_bytes}

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _answer(request: bytes, context: grpc.ServicerContext) -> bytes:
    return bytes(_SIZE.unpack_from(request)[0])
