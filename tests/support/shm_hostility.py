"""What hostile peers in the tests of shared memory have in common."""

from __future__ import annotations

import mmap
import os
from typing import Any

from shm_actor import policy_spec

from async_delta_inference.transport.shm.shared.handshake import Hello
from async_delta_inference.transport.shm.shared.layout import SegmentLayout

LAYOUT = SegmentLayout.of_session(policy_spec())
HELLO = dict(Hello("0123456789abcdef", policy_spec(), 1).to_message())
FUZZ_ROUNDS = 60


def map_file(path: str) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, 32)
    finally:
        os.close(descriptor)


def try_release(semaphore: Any, count: int) -> None:
    for _ in range(count):
        try:
            semaphore.release()
        except OSError:
            return
