"""The benchmark for a GPU, without one: what it computes of a trace, and all of its parts with tiny policies."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import pytest
import torch
from harness.gpu import forward_clock
from harness.gpu.around_forward import compare_stacks, with_forwards
from harness.gpu.budget import Budget, shares_of
from harness.gpu.device_trace import DeviceTrace, write_for_viewers
from harness.gpu.forward_clock import Forward, ForwardClock
from harness.gpu.intervals import covered, length, overlap
from harness.gpu.settings import PARTS
from harness.gpu.simulators import Job, Simulators
from harness.gpu.targets import TARGETS, judged
from harness.null_policy import NullPolicy
from harness.payloads import parse_payload
from harness.statistics import Series

from async_delta_inference.errors import AsyncDeltaError
from async_delta_inference.stage_trace import StageSpan
from async_delta_inference.transport import PolicyNeeds, SessionSpec, SetupRefusedError, serve


def event(category: str, name: str, start_us: float, duration_us: float) -> dict[str, Any]:
    arguments = {"stream": 7, "registers per thread": 40}
    return {
        **{"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7},
        **{"ts": start_us, "dur": duration_us, "args": arguments},
    }


TRACE = [
    {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "GPU 0"}},
    event("kernel", "gemm", 100, 50),
    event("kernel", "at the same time, on another stream", 120, 40),
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 150, 20),  # 10 of it beside a kernel.
    event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 180, 20),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 290, 10),
    event("cuda_runtime", "cudaLaunchKernel", 90, 500),
]


def test_intervals_are_counted_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert length([(0, 2), (1, 3), (1, 2)]) == 3
    assert overlap([(0, 4), (6, 8)], [(3, 7), (3, 5), (20, 30)]) == 2
    assert overlap([], [(0, 1)]) == 0


def test_trace_tells_how_busy_the_device_was_and_which_copies_were_hidden() -> None:
    trace = DeviceTrace.of(TRACE)
    assert trace.span_us == 200  # From 100 to 300: what the host does is no work of the device.
    assert trace.busy_share(wall_us=100) == pytest.approx(60 / 200)
    assert trace.busy_share(wall_us=240) == pytest.approx(60 / 240)
    assert trace.copy_overlap_share() == pytest.approx(10 / 40)


def test_trace_of_no_device_has_no_shares() -> None:
    trace = DeviceTrace.of([TRACE[0], TRACE[-1]])
    assert (trace.span_us, trace.busy_share(100), trace.copy_overlap_share()) == (0, None, None)


def test_trace_for_viewers_keeps_what_the_device_did(tmp_path: Path) -> None:
    assert write_for_viewers(TRACE, tmp_path / "trace.json.gz") == 5
    written = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert [one["name"] for one in written] == [one["name"] for one in TRACE[:-1]]
    assert written[1]["args"] == {"stream": 7}


def test_measured_forward_pass_takes_its_time_from_what_follows() -> None:
    spans = [StageSpan("preprocess", 3, 0, 10), StageSpan("forward", 3, 10, 5), StageSpan("postprocess", 3, 15, 100)]
    assert with_forwards(spans, {3: 80}) == [
        StageSpan("preprocess", 3, 0, 10),
        StageSpan("forward", 3, 10, 80),
        StageSpan("postprocess", 3, 90, 25),
    ]


class Events:
    """torch.cuda.Event, as far as the clock uses it: the stream comes past an event only when somebody waits."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.calls: list[str] = []

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        assert self.calls == ["record"]
        self.calls.append("synchronize")

    def elapsed_time(self, end: Events) -> float:
        assert (self.calls, end.calls) == (["record"], ["record", "synchronize"])
        return 2.5


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def predict_action_chunk(self, batch: dict[str, Any], noise: int = 0) -> torch.Tensor:
        return torch.zeros(batch["rows"], 4, 2) + noise


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_clock_times_forward_passes_while_it_records(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, clock = Small(), ForwardClock()
    if device == "cuda":
        monkeypatch.setattr(torch.cuda, "Event", Events)
        monkeypatch.setattr(forward_clock, "_is_on_cuda", lambda policy: True)
    clock.attach(policy)
    clock.attach(policy)
    policy.predict_action_chunk({"rows": 2})
    clock.recording = True
    assert policy.predict_action_chunk({"rows": 3}, noise=1).shape == (3, 4, 2)
    (forward,) = clock.take()
    assert forward.rows == 3
    assert forward == Forward(2_500_000, 3) if device == "cuda" else forward.duration_ns > 0
    assert clock.take() == []


def test_time_that_a_part_saves_is_the_next_ones() -> None:
    weights = {"a": 1.0, "b": 3.0}
    assert shares_of(100.0, weights, "a") == 25.0
    assert shares_of(99.0, weights, "b") == 99.0
    whole = Budget(1000.0)
    part = Budget(10.0, whole=whole)
    assert part.allows(1.0)
    assert not whole.was_cut_short
    assert not part.allows(20.0)
    assert whole.was_cut_short


class Refuses(NullPolicy):
    """A policy that lets one session in."""

    def __init__(self) -> None:
        self.opened = 0

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        self.opened += 1
        if self.opened > 1:
            raise SetupRefusedError("one is enough")
        return super().describe(spec)


def test_simulators_can_be_told_again_after_one_failed() -> None:
    payload = parse_payload("1x16x16")
    with Simulators(2) as simulators:
        for policy, refused in ((Refuses(), True), (NullPolicy(), False)):
            collected: list[Any] = []
            with serve(policy, "shm://adi-test-simulators", max_batch=2) as server:
                job = Job(server.uris[0], payload.spec(), payload, think_s=0.001)
                if refused:
                    with pytest.raises(AsyncDeltaError, match="one is enough"), simulators.at_work(job, 2, collected):
                        pytest.fail("it was let in")
                else:
                    with simulators.at_work(job, 2, collected):
                        pass
        assert [exchanges.shape[1] for exchanges in collected] == [2, 2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every part, end to end."""
    pytest.importorskip("num2words", reason="SmolVLA's processor needs num2words: lerobot[smolvla]")
    folder = tmp_path_factory.mktemp("gpu")
    flags = ["--device=cpu", "--small", "--in_this_process", "--sessions=1,2", "--batch_sizes=1,2", "--measure_s=0.2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu.py", *flags, f"--output_dir={folder}"])
        assert gpu.main() == 0
    return folder, json.loads((folder / "gpu.json").read_text())


def test_every_part_runs_and_leaves_its_figures(results: tuple[Path, dict[str, Any]]) -> None:
    folder, found = results
    assert {name: part["state"] for name, part in found["parts"].items()} == dict.fromkeys(PARTS, "done")
    assert [row["transport"] for row in found["transport"]] == ["grpc-native", "shm", "shm"]
    around = found["around_forward"]
    assert [row["stack"] for row in around["rows"]] == ["grpc", "shm-pageable", "shm-pinned"]
    assert all(0 < row["without_forward_p50_us"] < row["total_p50_us"] for row in around["rows"])
    assert around["most_action_difference"] < 1e-4
    kinds = [(policy, number) for policy in ("smolvla", "act") for number in (1, 2)]
    assert [(row["policy"], row["batch_size"]) for row in found["batches"]] == kinds
    crowds = [(policy, *crowd) for policy in ("smolvla", "act") for crowd in ((1, 1), (2, 2), (2, 1))]
    assert [(row["policy"], row["sessions"], row["max_batch"]) for row in found["sessions"]] == crowds
    assert all(row["chunks_per_s"] > 0 and row["gpu_busy_share"] is None for row in found["sessions"])
    assert {row["policy"]: set(row["parameters_by_dtype"]) for row in found["policies"]} == {
        "smolvla": {"bfloat16", "float32"},
        "act": {"float32"},
    }
    assert (found["trace"]["kernels"], found["trace"]["copy_overlap_share"]) == (0, None)
    assert sorted(path.name for path in folder.iterdir()) == ["gpu.json", "gpu.md", "gpu.png", "trace.json.gz"]


def test_targets_are_judged_on_a_gpu_alone(results: tuple[Path, dict[str, Any]]) -> None:
    _, found = results
    assert {one["verdict"] for one in found["targets"]} == {"n/a"}
    row = {
        "stack": "shm-pinned",
        "without_forward_p50_us": 250.0,
        "grpc_without_forward_to_this": {"median": 9.0},
    }
    sessions = [
        {"policy": "smolvla", "sessions": 32, "chunks_per_s": 80.0, "rate_to_one_session": 7, "gpu_busy_share": 0.9},
        {"policy": "smolvla", "sessions": 32, "chunks_per_s": 90.0, "rate_to_one_session": 8.5, "gpu_busy_share": None},
    ]
    measured = {
        "machine": {"gpu": {"name": "one"}},
        "settings": {"small": False},
        "around_forward": {"rows": [row]},
        "sessions": sessions,
    }
    assert [one["verdict"] for one in judged(measured)] == ["met", "missed", "met", "n/a"]
    assert [target.verdict({**measured, "settings": {"small": True}}) for target in TARGETS] == ["n/a"] * 4


def test_policy_that_fails_keeps_what_it_had_and_lets_the_next_one_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.gpu import run

    def measure(load: Any, simulators: Any, crowds: Any, budget: Budget) -> Iterator[dict[str, Any]]:
        yield {"policy": load, "sessions": 1, "max_batch": 1, "chunks_per_s": 2.0}
        if load == "smolvla":
            raise AsyncDeltaError("it had enough")

    monkeypatch.setattr(run, "measure_sessions", measure)
    monkeypatch.setattr(run.Run, "_load", lambda self, policy_type: policy_type)
    monkeypatch.setattr(run.Run, "_started_simulators", lambda self: None)
    flags = ["--device=cpu", "--small", "--only=sessions", f"--output_dir={tmp_path}", "--in_this_process"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *flags])
    assert gpu.main() == gpu.EXIT_FAILED_PART
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["policy"] for row in written["sessions"]] == ["smolvla", "act"]
    assert "it had enough" in written["parts"]["sessions"]["error"]


def test_stack_that_fails_leaves_the_others_their_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.gpu import around_forward

    class Stack:
        def __init__(self, name: str, *args: Any) -> None:
            self.name, self.spans, self.actions = name, [], [np.zeros((3, 2), np.float32)]
            self.series = Series(name, "loan", "tiny")

        def run_round(self, chunks: int) -> None:
            if self.name == "grpc":
                raise AsyncDeltaError("nobody answers")
            self.series.add(np.array([3000, 5000]), None)
            self.series.forward_ns.append(np.array([1000, 1000]))

    monkeypatch.setattr(around_forward, "StackVariant", Stack)
    monkeypatch.setattr(around_forward, "_started", lambda *args: dict.fromkeys(("grpc", "shm-pinned")))
    budget = Budget(100.0)
    found, errors = compare_stacks(parse_payload("state"), tmp_path, "cpu", chunks=2, rounds=2, budget=budget)
    assert [str(error) for error in errors] == ["nobody answers"]
    (row,) = found["rows"]
    assert (row["stack"], row["rounds"], row["without_forward_p50_us"]) == ("shm-pinned", 2, 3.0)
    assert row["grpc_without_forward_to_this"] is None


def test_part_that_fails_is_told_and_the_next_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.gpu.run import Run

    monkeypatch.setattr(Run, "_measure_transport", lambda self, budget: 1 / 0)
    monkeypatch.setattr(Run, "_measure_trace", lambda self, budget: None)
    flags = ["--device=cpu", "--small", "--only=transport,trace", f"--output_dir={tmp_path}", "--in_this_process"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *flags])
    assert gpu.main() == gpu.EXIT_FAILED_PART
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["transport"]["state"] == "failed"
    assert "ZeroDivisionError" in parts["transport"]["error"]
    assert parts["trace"]["state"] == "done"
