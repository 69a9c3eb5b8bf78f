"""Where the time of a chunk goes: a recorder of the moments at which its stages end, off unless somebody asked.

A mark says that a stage of the chunk for a timestep has ended; the stage began where the mark before it ended. The
clock is CLOCK_MONOTONIC, which all processes of a host share, so that the marks of client and server make one row::

    BEGIN capture encode transfer wait prepare preprocess forward postprocess reply merge
    |-------- client ----|- wire -|------------- server ------------------|-wire-|client|

Call sites look first, so that nothing is paid when it is off::

    if stages.recorder is not None:
        stages.recorder.mark(stages.CAPTURE, timestep)
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

__all__ = [
    "BEGIN",
    "CAPTURE",
    "ENCODE",
    "FORWARD",
    "MERGE",
    "POSTPROCESS",
    "PREPARE",
    "PREPROCESS",
    "REPLY",
    "STAGES",
    "TRANSFER",
    "WAIT",
    "Mark",
    "StageRecorder",
    "start",
    "stop",
    "take",
]

BEGIN = "begin"
"""Not a stage: where the first one begins."""
CAPTURE = "capture"
"""The environment wrote its observation."""
ENCODE = "encode"
"""Pickled, or copied into a slot."""
TRANSFER = "transfer"
"""The server has it."""
WAIT = "wait"
"""The server turned to it."""
PREPARE = "prepare"
"""Raw observation to tensors."""
PREPROCESS = "preprocess"
"""The policy's preprocessor."""
FORWARD = "forward"
"""The policy itself."""
POSTPROCESS = "postprocess"
"""The policy's postprocessor, and the chunk put together."""
REPLY = "reply"
"""The chunk is there for the client to take."""
MERGE = "merge"
"""The chunk is in the client's queue. Begins when it could have been taken: the client's waking, or the time until it
looked, is in it."""

STAGES = (CAPTURE, ENCODE, TRANSFER, WAIT, PREPARE, PREPROCESS, FORWARD, POSTPROCESS, REPLY, MERGE)
"""In order."""

Mark = tuple[str, int, int]
"""stage that ended, timestep, ``time.monotonic_ns()``."""


class StageRecorder:
    """Keeps marks until they are taken, about 1 KB a chunk. Any thread may add one."""

    __slots__ = ("_extend", "_flat")

    def __init__(self) -> None:
        # Three entries a mark, one after the other: a tuple for each would cost a quarter more, most of it the garbage
        # collector's. One call adds all three, so that no other thread's come in between.
        self._flat: list[Any] = []
        self._extend = self._flat.extend

    def mark(self, stage: str, timestep: int) -> None:
        """``stage`` of the chunk for ``timestep`` ends now."""
        self._extend((stage, timestep, monotonic_ns()))

    def mark_at(self, stage: str, timestep: int, at_ns: int) -> None:
        """``stage`` of the chunk for ``timestep`` ended at ``at_ns``, of ``time.monotonic_ns()``."""
        self._extend((stage, timestep, at_ns))

    def take(self) -> list[Mark]:
        """The marks so far, forgotten here."""
        taken = self._flat[:]
        # Not clear(): another thread may have added some meanwhile.
        del self._flat[: len(taken)]
        flat = iter(taken)
        return list(zip(flat, flat, flat, strict=True))


recorder: StageRecorder | None = None
"""This process's recorder; None while nothing is recorded."""


def start() -> StageRecorder:
    """Record in this process from now on, with an empty recorder."""
    global recorder
    recorder = StageRecorder()
    return recorder


def stop() -> None:
    """Record nothing from now on, and forget."""
    global recorder
    recorder = None


def take() -> list[Mark]:
    """The marks so far, which the recorder forgets; empty when there is none."""
    if recorder is None:
        return []
    return recorder.take()
