"""Where two processes run while they are measured against each other: on one core, on two, or as the kernel likes.

Who wakes whom, and from where, is most of a small exchange. A kernel that puts both processes on one core spares the
interrupt that wakes the other core (60 us on one virtual machine, against 3 us for the C floor on one core), and it
changes its mind from round to round; so a ratio of small exchanges is measured with both sides of it placed alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["PLACEMENTS", "placed", "processors_of"]

PLACEMENTS = ("one", "two")


def processors_of(placement: str) -> tuple[set[int], set[int]] | None:
    """Processors of client and server; None where this process may not use enough of them."""
    allowed = sorted(os.sched_getaffinity(0))
    if placement == "one":
        return {allowed[-1]}, {allowed[-1]}
    return ({allowed[0]}, {allowed[-1]}) if len(allowed) > 1 else None


@contextmanager
def placed(server_pid: int, client: set[int], server: set[int]) -> Iterator[None]:
    """Within it, this process and the server run on those processors, all their threads."""
    before = os.sched_getaffinity(0)
    _place(os.getpid(), client)
    _place(server_pid, server)
    try:
        yield
    finally:
        _place(os.getpid(), before)
        _place(server_pid, before)


def _place(pid: int, processors: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # A thread that has just ended needs no place.
            os.sched_setaffinity(int(task.name), processors)
