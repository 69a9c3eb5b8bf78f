"""LeRobot's own RobotClient, unmodified: over shared memory, over gRPC to our server, and to LeRobot's.

::

    python benchmarks/robot_client.py
    python benchmarks/robot_client.py --exchanges=100 --rounds=5

A robot that sees LIBERO's payload sends it and waits for the actions, at each server in turn, round by round. The
servers' policy costs nothing. Writes ``robot_client.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from harness.machine import describe_machine
from harness.payloads import PAYLOADS
from harness.servers import ServerProcess, preload
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from async_delta_inference.command_line import run_command

KINDS = {
    "shm-host": "shared memory, our server with LeRobot's policy",
    "grpc-ours": "gRPC, the same server",
    "grpc": "gRPC, LeRobot's PolicyServer",
}
_WARMUP = 10

Durations = NDArray[np.int64]


def measure(exchanges: int, rounds: int, kinds: Mapping[str, str] = KINDS) -> dict[str, Durations]:
    """What every exchange took, by kind of server: ns, (rounds * exchanges, 2), sending and the whole.

    Raises:
        AsyncDeltaError: A server or an answer is missing.
    """
    libero = PAYLOADS["libero"]
    # RobotClient's actions are as wide as its state.
    payload = libero.with_chunk((libero.chunk[0], libero.features.state_dim))
    preload()
    # Here, since servers' processes import this module: LeRobot's RobotClient has its loggers say more.
    from harness.stillrobot import RobotExchange

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adi-bench-")))
        clients = {}
        for kind in kinds:
            server = stack.enter_context(ServerProcess(kind))
            clients[kind] = stack.enter_context(closing(RobotExchange(server.uri, payload, folder)))
        for client in clients.values():
            for _ in range(_WARMUP):
                client.run()
        taken: dict[str, list[tuple[int, int]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, client in clients.items():
                taken[kind] += [client.run() for _ in range(exchanges)]
    return {kind: np.array(durations) for kind, durations in taken.items()}


def figures(durations: Durations) -> dict[str, float]:
    """Percentiles of one kind's, us."""
    percentiles = np.percentile(durations / 1000, [50, 99], axis=0)
    names = ("send_p50_us", "exchange_p50_us", "send_p99_us", "exchange_p99_us")
    return dict(zip(names, percentiles.ravel().tolist(), strict=True))


def main() -> int:
    """Run the command; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=100, help="of each server in a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    flags = parser.parse_args()
    found = {kind: figures(durations) for kind, durations in measure(flags.exchanges, flags.rounds).items()}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    results = {"kinds": found, "exchanges": flags.exchanges * flags.rounds, "environment": describe_machine()}
    path = flags.output_dir / "robot_client.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    table = Table("RobotClient over", "send p50, us", "p99", "exchange p50, us", "p99")
    for kind, row in found.items():
        order = ("send_p50_us", "send_p99_us", "exchange_p50_us", "exchange_p99_us")
        table.add_row(KINDS[kind], *(f"{row[name]:,.0f}" for name in order))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    console.print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
