"""Compares the transports under the same client code, and says where every microsecond goes.

::

    python benchmarks/latency.py --quick
    python benchmarks/latency.py --payload=2x224x224

Writes ``latency.json``, ``latency.md`` and three pictures; `docs/benchmarks.md` explains the rows and the schema.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Before anything loads torch: two threads of it would fight the other process for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harness.floor import compile_floor
from harness.payloads import Payload, parse_payload
from harness.plan import ClientStep, Plan, full_plan, payload_plan, quick_plan
from harness.servers import LIGHT_KINDS, ServerProcess, build_checkpoint, preload
from harness.statistics import Series, row_of
from rich.console import Console

from async_delta_inference.command_line import run_command

Results = dict[str, Any]


class Run:
    """One run of a plan.

    Args:
        plan: What to measure.
        folder: For results and checkpoints.
        console: For progress.
        peers: Whether to measure the optional peers too.
    """

    def __init__(self, plan: Plan, folder: Path, console: Console, peers: bool = False) -> None:
        self._plan, self._folder, self._console, self._peers = plan, folder, console, peers
        self.series: list[Series] = []
        self._stages: list[dict[str, Any]] = []
        self._memory: list[dict[str, Any]] = []

    def execute(self) -> Results:
        """Measure everything.

        Returns:
            What becomes ``latency.json``.

        Raises:
            AsyncDeltaError: A server does not start, or a reply is wrong.
        """
        started_s = time.monotonic()
        from harness.machine import describe_machine
        from harness.stage_figures import recorder_cost

        if set(self._plan.kinds) - set(LIGHT_KINDS):
            preload()
            import async_delta_inference.transport.grpc  # noqa: F401 - not while something is measured

        environment: dict[str, Any] = {"run": self._plan.name, **describe_machine(), "stage_recorder": recorder_cost()}
        with ExitStack() as stack:
            servers = {kind: stack.enter_context(ServerProcess(kind)) for kind in self._plan.kinds}
            environment["loading_s"] = round(time.monotonic() - started_s, 1)
            self._console.print(f"loading took {environment['loading_s']} s; measuring")
            started_s = time.monotonic()
            self._measure(servers)
            environment["measuring_s"] = round(time.monotonic() - started_s, 1)
        environment["load_average_at_end"] = os.getloadavg()[0]
        return {
            "rows": [row_of(one, self.series) for one in self.series],
            "environment": environment,
            "stages": self._stages,
            "memory": self._memory,
        }

    def _measure(self, servers: dict[str, ServerProcess]) -> None:
        from harness.soak import soak
        from harness.transport_level import measure_payload

        program = compile_floor()
        if program is None:
            self._console.print("no C compiler: the floor is left out")
        for step in self._plan.transport_steps:
            self._say(step.payload, f"transport, {', '.join(step.kinds)}")
            with ExitStack() as stack:
                more = self._peer_exchanges(stack, step.payload) if step.tight else []
                self.series += measure_payload(
                    step.payload,
                    servers,
                    step.kinds,
                    tight=step.tight,
                    paced=step.paced,
                    floor_program=program if "shm" in step.kinds else None,
                    more=more,
                )
        if program is not None:
            shutil.rmtree(program.parent)
        for client_step in self._plan.client_steps:
            self._say(client_step.payload, f"SimClient, {client_step.policy}, {client_step.pacing}")
            self._measure_client(client_step, servers)
        if self._plan.soak_exchanges:
            payload = parse_payload("state")
            self._say(payload, f"memory over {self._plan.soak_exchanges} exchanges")
            self._memory.append(soak(servers["shm"], payload, self._plan.soak_exchanges))

    def _measure_client(self, step: ClientStep, servers: dict[str, ServerProcess]) -> None:
        from harness.client_level import ClientVariant, run_client_level
        from harness.stage_figures import stage_rows

        null = step.policy == "null"
        checkpoint = step.payload.null_checkpoint if null else str(self._checkpoint(step.payload, step.policy))
        variants = []
        for transport, kind, mode in ((step.grpc, step.grpc, "copy"), ("shm", "shm-host", "loan")):
            series = Series(transport, mode, step.payload.name, step.policy, step.pacing, "client")
            variants.append(ClientVariant(servers[kind], step.payload, checkpoint, series))
        run_client_level(variants, step.chunks, step.rounds)
        for variant in variants:
            self.series.append(variant.series)
            self._stages += stage_rows(variant.series, variant.spans)

    def _checkpoint(self, payload: Payload, policy: str) -> Path:
        folder = self._folder / policy / payload.name
        if not (folder / "config.json").is_file():
            build_checkpoint(policy, folder, payload.spec(), payload.image_shapes[0][0])
        return folder.resolve()

    def _peer_exchanges(self, stack: ExitStack, payload: Payload) -> list[Any]:
        if not self._peers:
            return []
        from harness.peers import open_peers

        return open_peers(stack, payload, self._console.print)

    def _say(self, payload: Payload, what: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {payload.name}: {what}")


def write_results(folder: Path, results: Results, series: Sequence[Series]) -> None:
    """``latency.json``, ``latency.md`` and the pictures."""
    from harness.pictures import draw_pictures
    from harness.report import markdown

    (folder / "latency.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "latency.md").write_text(markdown(results))
    draw_pictures(folder, series, results)


def run_plan(plan: Plan, folder: Path, *, peers: bool = False) -> Results:
    """Measure, write and print.

    Returns:
        What ``latency.json`` holds.
    """
    from harness.report import print_results

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(plan, folder, console, peers)
    results = run.execute()
    write_results(folder, results, run.series)
    print_results(results, console)
    console.print(f"wrote {folder / 'latency.json'}")
    return results


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute, the rows that bench-check looks at")
    parser.add_argument("--payload", help="only this: a name, or CAMERASxHEIGHTxWIDTH")
    parser.add_argument("--cameras", type=int, help="how many cameras of that size")
    parser.add_argument("--peers", action="store_true", help="also zmq, websockets and iceoryx2 (extra: peers)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    flags = parser.parse_args()
    if flags.payload:
        plan = payload_plan(parse_payload(flags.payload, flags.cameras), flags.quick)
    else:
        plan = quick_plan() if flags.quick else full_plan()
    run_plan(plan, flags.output_dir, peers=flags.peers)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
