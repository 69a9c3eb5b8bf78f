"""A request and its reply over a websocket without compression, as openpi's policy server does it; a Unix socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["connect", "serve"]


def serve(address: str, answer: Callable[[bytes], bytes], size: int, started: Callable[[], None]) -> None:
    """Answer requests for ever, one client at a time."""
    from websockets.sync.server import unix_serve

    def talk(connection: Any) -> None:
        for request in connection:
            connection.send(answer(request))

    with unix_serve(talk, address, compression=None, max_size=None) as server:
        started()
        server.serve_forever()


@contextmanager
def connect(address: str, size: int) -> Iterator[Callable[[bytes], bytes]]:
    """A function from request to reply."""
    from websockets.sync.client import unix_connect

    with unix_connect(address, "ws://localhost/", compression=None, max_size=None) as connection:

        def exchange(request: bytes) -> bytes:
            connection.send(request)
            reply = connection.recv()
            assert isinstance(reply, bytes)
            return reply

        yield exchange
