"""A request and its reply over a zmq socket of the kind ``ipc``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["connect", "serve"]


def serve(address: str, answer: Callable[[bytes], bytes], size: int, started: Callable[[], None]) -> None:
    """Answer requests for ever."""
    import zmq

    socket = zmq.Context().socket(zmq.REP)
    socket.bind(f"ipc://{address}")
    started()
    while True:
        socket.send(answer(socket.recv()), copy=False)


@contextmanager
def connect(address: str, size: int) -> Iterator[Callable[[bytes], bytes]]:
    """A function from request to reply."""
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.connect(f"ipc://{address}")

    def exchange(request: bytes) -> bytes:
        socket.send(request, copy=False)
        reply: bytes = socket.recv()
        return reply

    try:
        yield exchange
    finally:
        context.destroy(linger=0)
