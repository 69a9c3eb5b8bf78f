"""What many simulators get from one policy that answers them in batches, and how busy they keep the device."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from async_delta_inference.transport import SessionSpec
from async_delta_inference.transport.server import make_server
from harness.gpu.budget import Budget
from harness.gpu.device_trace import DeviceTrace, read_events, write_for_viewers
from harness.gpu.forward_clock import Forward
from harness.gpu.profiling import profile_window
from harness.gpu.simulators import Exchanges, Job, Simulators
from harness.gpu.timed_policies import TimedLeRobotPolicy
from harness.payloads import Payload
from harness.servers import private_shm_uri

__all__ = ["Crowd", "Load", "crowds_of", "in_turns", "measure_sessions", "trace_batches"]

_TRACED_BATCHES = 5
_SHORTEST_TRACE_S, _LONGEST_TRACE_S = 0.05, 2.0


@dataclass(frozen=True)
class Crowd:
    """Who asks.

    Args:
        sessions: How many simulators.
        max_batch: How many of them are answered together at most.
    """

    sessions: int
    max_batch: int


def crowds_of(counts: Sequence[int]) -> list[Crowd]:
    """All in one batch for every number of sessions, and the most of them in two that take turns, one of which is
    copied to the device while the other is computed. First what the targets are about, should time be short.
    """
    first, *others = [Crowd(count, count) for count in counts]
    return [first, *([others[-1], in_turns(others[-1].sessions), *others[:-1]] if others else [])]


def in_turns(sessions: int) -> Crowd:
    """In two batches."""
    return Crowd(sessions, max(1, sessions // 2))


@dataclass(frozen=True)
class Load:
    """What is measured, and how long.

    Args:
        policy_type: For the rows.
        policy: Loaded, in this process.
        spec: What every session asks for.
        payload: What every simulator observes.
        think_s: How long a simulator simulates between a chunk and the next observation.
        linger_s: How long the server waits for more sessions once one asks.
        warmup_s: Before the measuring, for the batch sizes that come up.
        measure_s: For rates and latencies.
        profile_s: After that, for the share in which the device is busy.
    """

    policy_type: str
    policy: TimedLeRobotPolicy
    spec: SessionSpec
    payload: Payload
    think_s: float
    linger_s: float
    warmup_s: float
    measure_s: float
    profile_s: float

    @contextmanager
    def from_simulators(self, simulators: Simulators, crowd: Crowd, collected: list[Exchanges]) -> Iterator[None]:
        """Within it so many simulators are at work; then ``collected`` has their exchanges."""
        server = make_server(self.policy, private_shm_uri(), max_batch=crowd.max_batch, linger_s=self.linger_s)
        server.start()
        with server:
            job = Job(server.uris[0], self.spec, self.payload, self.think_s)
            with simulators.at_work(job, crowd.sessions, collected):
                time.sleep(self.warmup_s)
                yield


def measure_sessions(
    load: Load, simulators: Simulators, crowds: Sequence[Crowd], budget: Budget
) -> Iterator[dict[str, Any]]:
    """One row for every crowd for which there is time."""
    first: dict[str, Any] | None = None
    for crowd in crowds:
        if not budget.allows(budget.longest_step_s):
            return
        with budget.step():
            row = _measure(load, simulators, crowd)
        first = first or row
        yield {**row, "rate_to_one_session": _to_one_session(row, first)}


def trace_batches(load: Load, simulators: Simulators, crowd: Crowd, path: Path) -> dict[str, Any]:
    """Write what the device does for some batches as a trace for viewers, and say how much of the copying overlaps.

    Args:
        load: What is asked.
        simulators: Who asks.
        crowd: How many of them, in which batches.
        path: Of the trace, ends in ``.json.gz``.
    """
    with tempfile.TemporaryDirectory(prefix="adi-bench-") as folder:
        whole = Path(folder) / "trace.json"
        with load.from_simulators(simulators, crowd, []):
            seconds = _trace_seconds(load)
            profile_window(seconds, load.policy.device, whole)
        events = read_events(whole)
    trace = DeviceTrace.of(events)
    return {
        "file": path.name,
        "policy": load.policy_type,
        **asdict(crowd),
        "recorded_s": round(seconds, 3),
        "events": write_for_viewers(events, path),
        "kernels": len(trace.kernels),
        "copies_to_device": len(trace.copies_to_device),
        "copies_to_device_us": round(sum(end - start for start, end in trace.copies_to_device), 1),
        "copy_overlap_share": _rounded(trace.copy_overlap_share()),
    }


def _measure(load: Load, simulators: Simulators, crowd: Crowd) -> dict[str, Any]:
    collected: list[Exchanges] = []
    with load.from_simulators(simulators, crowd, collected):
        with load.policy.timed_forwards() as forwards:
            start_ns = time.monotonic_ns()
            time.sleep(load.measure_s)
            end_ns = time.monotonic_ns()
        busy, profiled = _busy(load)
    exchanges = np.concatenate(collected)
    latencies_ms = _within(exchanges, start_ns, end_ns)[:, 1] / 1e6
    return {
        "policy": load.policy_type,
        **asdict(crowd),
        "think_ms": load.think_s * 1000,
        "linger_ms": load.linger_s * 1000,
        "chunks": len(latencies_ms),
        "chunks_per_s": round(len(latencies_ms) * 1e9 / (end_ns - start_ns), 2),
        **_latencies(latencies_ms),
        **_batches(forwards),
        "gpu_busy_share": _rounded(busy),
        "chunks_per_s_while_profiled": _rate_of(exchanges, profiled),
    }


def _busy(load: Load) -> tuple[float | None, tuple[int, int] | None]:
    """The share in which the device computes, and when that was looked at; None where there is no GPU."""
    if load.policy.device.type != "cuda":
        return None, None
    with tempfile.TemporaryDirectory(prefix="adi-bench-") as folder:
        window = profile_window(load.profile_s, load.policy.device, Path(folder) / "trace.json")
        trace = DeviceTrace.of(read_events(window.path))
    return trace.busy_share(window.wall_us), (window.start_ns, window.end_ns)


def _within(exchanges: Exchanges, start_ns: int, end_ns: int) -> Exchanges:
    return exchanges[(exchanges[:, 0] >= start_ns) & (exchanges[:, 0] < end_ns)]


def _rate_of(exchanges: Exchanges, window: tuple[int, int] | None) -> float | None:
    if window is None:
        return None
    start_ns, end_ns = window
    return round(len(_within(exchanges, start_ns, end_ns)) * 1e9 / max(1, end_ns - start_ns), 2)


def _latencies(latencies_ms: Any) -> dict[str, float | None]:
    if not len(latencies_ms):
        return {"latency_p50_ms": None, "latency_p99_ms": None}
    return {f"latency_p{p}_ms": round(float(np.percentile(latencies_ms, p)), 3) for p in (50, 99)}


def _batches(forwards: Sequence[Forward]) -> dict[str, float | None]:
    if not forwards:
        return {"mean_batch_size": None, "forward_p50_ms": None}
    return {
        "mean_batch_size": round(float(np.mean([forward.rows for forward in forwards])), 2),
        "forward_p50_ms": round(float(np.median([forward.duration_ns for forward in forwards])) / 1e6, 3),
    }


def _to_one_session(row: dict[str, Any], first: dict[str, Any]) -> float | None:
    if first["sessions"] != 1 or not first["chunks_per_s"]:
        return None
    return round(row["chunks_per_s"] / first["chunks_per_s"], 2)


def _trace_seconds(load: Load) -> float:
    """Long enough for some batches."""
    with load.policy.timed_forwards() as forwards:
        time.sleep(_LONGEST_TRACE_S / 2)
    batch_s = _LONGEST_TRACE_S / 2 / max(1, len(forwards))
    return min(max(_TRACED_BATCHES * batch_s, _SHORTEST_TRACE_S), _LONGEST_TRACE_S)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
