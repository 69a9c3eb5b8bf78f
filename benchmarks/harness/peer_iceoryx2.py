"""A request and its reply through iceoryx2: publish and subscribe for the bytes, an event to wake the other side."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["connect", "serve"]


class _Side:
    """Publishes on one topic and listens on the other.

    Args:
        address: Makes the topics' names unique.
        out: Topic to publish on.
        into: Topic to listen on.
        size: Of the largest message, bytes.
    """

    def __init__(self, address: str, out: str, into: str, size: int) -> None:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        self._node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        byte_slice = iox2.Slice[ctypes.c_uint8]

        def service(topic: str) -> Any:
            name = iox2.ServiceName.new(f"{address}/{topic}")
            return self._node.service_builder(name)

        self._services = [service(topic).publish_subscribe(byte_slice).open_or_create() for topic in (out, into)]
        self._events = [service(topic).event().open_or_create() for topic in (out, into)]
        self._publisher = self._services[0].publisher_builder().initial_max_slice_len(size).create()
        self._subscriber = self._services[1].subscriber_builder().create()
        self._notifier = self._events[0].notifier_builder().create()
        self._listener = self._events[1].listener_builder().create()

    def send(self, message: bytes) -> None:
        """Copy a message into a loaned slice, publish it, and wake the other side."""
        sample = self._publisher.loan_slice_uninit(len(message))
        payload = sample.payload()
        ctypes.memmove(payload.as_ptr(), message, len(message))
        sample.assume_init().send()
        self._notifier.notify()

    def receive(self) -> bytes:
        """The next message."""
        while (sample := self._subscriber.receive()) is None:
            self._listener.blocking_wait()
        payload = sample.payload()
        message = ctypes.string_at(payload.as_ptr(), payload.len())
        sample.delete()
        return message


def serve(address: str, answer: Callable[[bytes], bytes], size: int, started: Callable[[], None]) -> None:
    """Answer requests until an empty one comes: a killed process would leave its files in /dev/shm."""
    side = _Side(address, "reply", "request", size)
    started()
    while request := side.receive():
        side.send(answer(request))


@contextmanager
def connect(address: str, size: int) -> Iterator[Callable[[bytes], bytes]]:
    """A function from request to reply."""
    side = _Side(address, "request", "reply", size)

    def exchange(request: bytes) -> bytes:
        side.send(request)
        return side.receive()

    try:
        yield exchange
    finally:
        side.send(b"")
