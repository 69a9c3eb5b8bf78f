"""Two threads take chunks from one transport: none lost, none twice, none out of order."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest

from async_delta_inference.client.control.chunk_source import ChunkSource
from async_delta_inference.errors import PolicyError
from async_delta_inference.transport import ActionChunk, Transport
from async_delta_inference.transport.testing import eventually


class Fountain:
    """A transport that always has the next chunk."""

    def __init__(self) -> None:
        self._timesteps = itertools.count()

    def receive_actions(self, timeout_s: float) -> ActionChunk | None:
        return ActionChunk(np.zeros((1, 1), np.float32), next(self._timesteps))


@pytest.fixture
def eager_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_chunks_keep_their_order_between_two_threads(eager_threads: None) -> None:
    source = ChunkSource(cast(Transport, Fountain()))
    receiver = threading.Thread(target=source.receive_until_stopped)
    receiver.start()
    seen: list[int] = []
    try:
        while len(seen) < 20_000:
            if (chunk := source.next_chunk(0.0)) is not None:
                seen.append(chunk.timestep)
    finally:
        source.stop()
        receiver.join()
    assert seen == list(range(len(seen)))


def test_chunk_that_comes_between_a_look_and_the_role_is_not_overtaken() -> None:
    """What two threads do once in a million times, done here: the other one receives right before the role is free."""
    source = ChunkSource(cast(Transport, Fountain()))

    class JustGivenUp:
        def acquire(self, *, blocking: bool) -> bool:
            source._role = role
            assert not blocking
            receiver = threading.Thread(target=source.receive_until_stopped)
            receiver.start()
            eventually(lambda: bool(source._received))
            source.stop()
            receiver.join()
            return role.acquire(blocking=False)

    role, source._role = source._role, cast(threading.Lock, JustGivenUp())
    chunk = source.next_chunk(0.0)
    assert chunk is not None
    assert chunk.timestep == 0


def test_chunk_that_another_thread_receives_ends_a_wait() -> None:
    """However long that may take. Chunks come one by one, each when the one before it was taken."""
    permits = threading.Semaphore(0)

    class Dripping(Fountain):
        def receive_actions(self, timeout_s: float) -> ActionChunk | None:
            return super().receive_actions(timeout_s) if permits.acquire(timeout=timeout_s) else None

    source = ChunkSource(cast(Transport, Dripping()))
    receiver = threading.Thread(target=source.receive_until_stopped)
    receiver.start()
    eventually(source._role.locked)
    taken: list[int] = []

    def take() -> None:
        while len(taken) < 50:
            if (chunk := source.next_chunk(1e6)) is not None:
                taken.append(chunk.timestep)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    try:
        for count in range(50):
            permits.release()
            eventually(lambda count=count: len(taken) > count)
    finally:
        source.stop()
        receiver.join()
    taker.join()
    assert taken == list(range(50))


def test_error_comes_after_the_chunks_before_it() -> None:
    class Breaks(Fountain):
        def receive_actions(self, timeout_s: float) -> ActionChunk | None:
            chunk = super().receive_actions(timeout_s)
            assert chunk is not None
            assert chunk.timestep <= 3, "asked again after an error"
            if chunk.timestep == 3:
                raise PolicyError("it broke", 3)
            return chunk

    source = ChunkSource(cast(Transport, Breaks()))
    source.receive_until_stopped()  # ends with the error
    for timestep in range(3):
        chunk = source.next_chunk(0.0)
        assert chunk is not None
        assert chunk.timestep == timestep
    with pytest.raises(PolicyError, match="it broke"):
        source.next_chunk(0.0)
