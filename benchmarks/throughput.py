"""How many observations a second, without waiting for their replies, and what an exchange costs as things grow.

::

    python benchmarks/throughput.py

One thing grows at a time: the payload, the number of cameras, the length of the chunk, the depth of the rings. The
server is shared memory with a policy that costs nothing, in a process of its own. Writes ``throughput.json`` and
``throughput.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from harness.exchanges import CopyExchange
from harness.null_policy import mark_observation
from harness.payloads import Payload
from harness.servers import ServerProcess
from harness.statistics import Series
from rich.console import Console

from async_delta_inference.command_line import run_command
from async_delta_inference.transport import Transport, connect

_BASE = Payload("libero", ((256, 256, 3),) * 2)


@dataclass(frozen=True)
class Point:
    """One configuration.

    Args:
        sweep: What grows.
        value: How far.
        payload: Observation and chunk.
        observation_slots: Of the session.
        action_slots: Of the session.
    """

    sweep: str
    value: int
    payload: Payload
    observation_slots: int = 4
    action_slots: int = 32


def points() -> list[Point]:
    """All that is measured."""
    sizes = [Point("pixels", side**2, Payload(f"1x{side}x{side}", ((side, side, 3),))) for side in (32, 128, 512, 1024)]
    cameras = [Point("cameras", n, Payload(f"{n}x256x256", ((256, 256, 3),) * n)) for n in (0, 1, 2, 4, 8)]
    chunks = [Point("chunk_rows", n, replace(_BASE, chunk=(n, 7))) for n in (1, 10, 50, 100, 500)]
    depths = [Point("observation_slots", n, _BASE, observation_slots=n) for n in (4, 8, 16)]
    depths += [Point("action_slots", n, _BASE, action_slots=n) for n in (4, 8, 32, 128)]
    return sizes + cameras + chunks + depths


def measure(point: Point, exchanges: int) -> dict[str, Any]:
    """Observations per second, and the latency of one exchange."""
    payload = point.payload
    slots = (point.observation_slots, point.action_slots)
    with ServerProcess("shm", slots) as server, connect(server.uri, payload.spec()) as transport:
        exchange = CopyExchange(transport, count(), payload, Series("shm", "copy", payload.name), server.pid)
        for _ in range(exchanges // 10):
            exchange.once()
        exchange.check()
        durations_us = np.array([exchange.once() for _ in range(exchanges)]) / 1000
        exchange.check()
        sent_per_s, answered_per_s = _stream(transport, payload, exchanges)
    return {
        "sweep": point.sweep,
        "value": point.value,
        "payload": payload.name,
        "chunk": list(payload.chunk),
        "observation_bytes": payload.observation_bytes,
        "n": exchanges,
        "sent_per_s": round(sent_per_s),
        "answered_per_s": round(answered_per_s),
        "p50_us": round(float(np.median(durations_us)), 2),
        "p99_us": round(float(np.percentile(durations_us, 99)), 2),
    }


def _stream(transport: Transport, payload: Payload, exchanges: int) -> tuple[float, float]:
    """Send without waiting; the server answers what it gets to, the newest first, so that fewer are answered."""
    observation = payload.observation()
    first, answered = 10 * exchanges, 0
    start_s = time.perf_counter()
    for number in range(first, first + exchanges):
        mark_observation(observation, number)
        transport.send_observation(observation)
        while transport.receive_actions(0.0) is not None:
            answered += 1
    spent_s = time.perf_counter() - start_s
    while transport.receive_actions(0.1) is not None:
        continue
    return exchanges / spent_s, answered / spent_s


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure, axes = plt.subplots(2, len(sweeps), figsize=(3.6 * len(sweeps), 6), squeeze=False)
    for column, sweep in enumerate(sweeps):
        own = [row for row in rows if row["sweep"] == sweep]
        values = [row["value"] for row in own]
        for name in ("sent_per_s", "answered_per_s"):
            axes[0, column].plot(values, [row[name] for row in own], "o-", label=name)
        for name in ("p50_us", "p99_us"):
            axes[1, column].plot(values, [row[name] for row in own], "o-", label=name)
        for axis in axes[:, column]:
            axis.set(xlabel=sweep, yscale="log")
            axis.grid(True, which="both", alpha=0.2)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=2000, help="of each configuration")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    flags = parser.parse_args()
    console = Console(highlight=False)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for point in points():
        rows.append(row := measure(point, flags.exchanges))
        rates = f"{row['sent_per_s']:>8,} sent/s, {row['answered_per_s']:>8,} answered/s"
        latency = f"p50 {row['p50_us']:>8} us, p99 {row['p99_us']:>8} us"
        console.print(f"{point.sweep:>17} {point.value:>8}: {rates}, {latency}", soft_wrap=True)
    from harness.machine import describe_machine

    results = {"rows": rows, "environment": describe_machine()}
    (flags.output_dir / "throughput.json").write_text(json.dumps(results, indent=1) + "\n")
    _draw(flags.output_dir / "throughput.png", rows)
    console.print(f"wrote {flags.output_dir / 'throughput.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
