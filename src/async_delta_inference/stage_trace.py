"""Marks of a `StageRecorder` as spans, and as a trace that https://ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from async_delta_inference import stages
from async_delta_inference.stages import Mark
from async_delta_inference.whole_files import write_whole

__all__ = ["StageSpan", "read_marks", "spans_of", "write_trace"]

_MARKS = "asyncDeltaMarks"

_CLIENT, _WIRE, _SERVER = 1, 2, 3
_TRACK_NAMES = {_CLIENT: "client", _WIRE: "transport", _SERVER: "server"}
_TRACKS = {
    stages.CAPTURE: _CLIENT,
    stages.ENCODE: _CLIENT,
    stages.TRANSFER: _WIRE,
    stages.REPLY: _WIRE,
    stages.MERGE: _CLIENT,
}


@dataclass(frozen=True, slots=True)
class StageSpan:
    """One stage of one chunk.

    Args:
        stage: One of `stages.STAGES`.
        timestep: Of the chunk's first action.
        start_ns: Of ``time.monotonic_ns()``.
        duration_ns: 0 or more.
    """

    stage: str
    timestep: int
    start_ns: int
    duration_ns: int


def spans_of(marks: Iterable[Mark]) -> list[StageSpan]:
    """The stages between the marks of one session, client's and server's together, by timestep.

    Observations that wait in shared memory while the server is busy have no mark of their own for that: what lies
    before the end of the last inference is `stages.WAIT`.
    """
    spans: list[StageSpan] = []
    busy_until_ns = 0
    for timestep, group in groupby(sorted(marks, key=lambda mark: (mark[1], mark[2])), key=lambda mark: mark[1]):
        chain = list(group)
        waits_are_marked = any(stage == stages.WAIT for stage, _, _ in chain)
        for (_, _, start_ns), (stage, _, end_ns) in pairwise(chain):
            if stage == stages.TRANSFER and not waits_are_marked and start_ns < busy_until_ns <= end_ns:
                spans.append(StageSpan(stages.WAIT, timestep, start_ns, busy_until_ns - start_ns))
                start_ns = busy_until_ns
            spans.append(StageSpan(stage, timestep, start_ns, end_ns - start_ns))
            if stage == stages.POSTPROCESS:
                busy_until_ns = end_ns
    return spans


def write_trace(path: Path, marks: Iterable[Mark]) -> None:
    """Write Chrome's trace format: one complete event per stage, microseconds, on the tracks client, transport, server.

    Args:
        path: Its folder is made; the file is there whole or not at all.
        marks: Of one session. They stand in the file too, under a key that viewers ignore, for `read_marks`.

    Raises:
        OSError: It cannot be written.
    """
    marks = list(marks)
    events: list[dict[str, object]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}
        for track, name in _TRACK_NAMES.items()
    ]
    events += [
        {
            "name": span.stage,
            "cat": "chunk",
            "ph": "X",
            "pid": 1,
            "tid": _TRACKS.get(span.stage, _SERVER),
            "ts": span.start_ns / 1000,
            "dur": span.duration_ns / 1000,
            "args": {"timestep": span.timestep},
        }
        for span in spans_of(marks)
    ]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms", _MARKS: marks})
    write_whole(path, lambda partial: partial.write_text(text))


def read_marks(path: Path) -> list[Mark]:
    """The marks in a file of `write_trace`, to be joined to those of another process.

    Raises:
        OSError: It cannot be read.
        ValueError, LookupError: It is something else.
    """
    marks = json.loads(path.read_text())[_MARKS]
    return [(str(stage), int(timestep), int(at_ns)) for stage, timestep, at_ns in marks]
