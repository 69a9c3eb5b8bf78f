"""The stage recorder and the trace that is made of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_delta_inference import stages
from async_delta_inference.client.record.stage_trace_file import StageTraceFile
from async_delta_inference.errors import ConfigError
from async_delta_inference.stage_trace import read_marks, spans_of, write_trace


@pytest.fixture(autouse=True)
def recorder_is_off_afterwards() -> Iterator[None]:
    yield
    stages.stop()


def test_it_is_off_unless_started() -> None:
    assert stages.recorder is None
    assert stages.take() == []


def test_a_stage_lasts_from_the_mark_before_it() -> None:
    recorder = stages.start()
    recorder.mark_at(stages.BEGIN, 7, 100)
    recorder.mark_at(stages.CAPTURE, 7, 130)
    recorder.mark_at(stages.ENCODE, 7, 135)
    spans = spans_of(stages.take())
    assert [(span.stage, span.start_ns, span.duration_ns) for span in spans] == [
        ("capture", 100, 30),
        ("encode", 130, 5),
    ]
    assert stages.take() == []


def test_marks_of_two_processes_join_in_the_order_of_time() -> None:
    client = [(stages.BEGIN, 0, 0), (stages.ENCODE, 0, 10), (stages.REPLY, 0, 90), (stages.MERGE, 0, 95)]
    server = [(stages.TRANSFER, 0, 20), (stages.FORWARD, 0, 80)]
    spans = spans_of(client + server)
    assert [span.stage for span in spans] == ["encode", "transfer", "forward", "reply", "merge"]
    assert sum(span.duration_ns for span in spans) == 95


def test_a_wait_for_a_busy_server_is_told_apart_from_the_transfer() -> None:
    first = [(stages.ENCODE, 0, 0), (stages.TRANSFER, 0, 5), (stages.POSTPROCESS, 0, 100)]
    second = [(stages.ENCODE, 1, 40), (stages.TRANSFER, 1, 103), (stages.POSTPROCESS, 1, 200)]
    spans = [span for span in spans_of(first + second) if span.timestep == 1]
    assert [(span.stage, span.duration_ns) for span in spans] == [("wait", 60), ("transfer", 3), ("postprocess", 97)]


def test_threads_do_not_mix_their_marks() -> None:
    recorder = stages.start()

    def add(stage: str) -> None:
        for timestep in range(2000):
            recorder.mark(stage, timestep)

    threads = [threading.Thread(target=add, args=(stage,)) for stage in (stages.ENCODE, stages.MERGE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    marks = recorder.take()
    for stage in (stages.ENCODE, stages.MERGE):
        assert [timestep for found, timestep, _ in marks if found == stage] == list(range(2000))


def test_trace_is_chromes_format(tmp_path: Path) -> None:
    marks = [(stages.BEGIN, 3, 1000), (stages.CAPTURE, 3, 3000), (stages.FORWARD, 3, 9000)]
    write_trace(tmp_path / "new" / "trace.json", marks)
    trace = json.loads((tmp_path / "new" / "trace.json").read_text())
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in complete] == [
        ("capture", 1.0, 2.0),
        ("forward", 3.0, 6.0),
    ]
    assert all({"pid", "tid", "cat", "args"} <= set(event) for event in complete)
    names = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert [names[event["tid"]] for event in complete] == ["client", "server"]
    assert read_marks(tmp_path / "new" / "trace.json") == marks


def test_stage_trace_file_joins_the_servers_part(tmp_path: Path) -> None:
    trace = StageTraceFile(tmp_path / "trace.json")
    assert stages.recorder is not None
    stages.recorder.mark_at(stages.BEGIN, 0, 10)
    write_trace(trace.server_path, [(stages.TRANSFER, 0, 30)])
    trace.finish()
    trace.finish()
    assert stages.recorder is None
    assert read_marks(tmp_path / "trace.json") == [(stages.BEGIN, 0, 10), (stages.TRANSFER, 0, 30)]
    assert not trace.server_path.exists()


def test_stage_trace_file_survives_a_server_that_was_killed_while_writing(tmp_path: Path) -> None:
    trace = StageTraceFile(tmp_path / "trace.json")
    trace.server_path.write_text("{")
    trace.finish()
    assert stages.recorder is None


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--trace"):
        StageTraceFile(tmp_path / "file" / "trace.json")
    assert stages.recorder is None
