"""Many sessions at one shared-memory server: what they get together, whether each gets its share, what waiting costs.

::

    python benchmarks/sessions.py
    python benchmarks/sessions.py --clients=8 --seconds=10 --check

Client processes exchange LIBERO's payload with one server process, whose policy costs nothing; before and after, one
session does so alone. Every reply must carry the marks of the observation it answers, which no other session's has.
Writes ``sessions.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.crowd import exchange_together, idle_cpu_s
from harness.machine import describe_machine
from harness.payloads import PAYLOADS
from harness.servers import ServerProcess
from rich.console import Console
from rich.table import Table

from async_delta_inference.command_line import run_command

EXIT_BREACH = 1

LEAST_TOTAL = 0.8
"""Exchanges per second of all sessions together, as a part of what one alone makes."""
LEAST_SHARE = 0.8
"""Exchanges of the slowest session, as a part of the fastest's."""
MOST_IDLE_CPU = 0.01
"""CPU seconds per second of a server with `IDLE_SESSIONS` sessions that say nothing."""

IDLE_SESSIONS = 64
IDLE_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """One figure and its bound.

    Args:
        what: For people.
        measured: In the bound's unit.
        bound: What is kept with it.
        at_least: Whether the bound is a lower one.
    """

    what: str
    measured: float
    bound: float
    at_least: bool = True

    @property
    def kept(self) -> bool:
        """Whether it is within its bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


@dataclass(frozen=True)
class Counts:
    """What was exchanged, and what waiting cost.

    Args:
        seconds: How long all exchanged together.
        each: Exchanges of every session in that time.
        alone_seconds: How long one session exchanged alone, before the others came and after they had gone.
        alone: Its exchanges, before and after.
        idle_cpu_s: CPU time of the server over `IDLE_SECONDS` with `IDLE_SESSIONS` silent sessions.
    """

    seconds: float
    each: Sequence[int]
    alone_seconds: float
    alone: tuple[int, int]
    idle_cpu_s: float

    @property
    def total_per_s(self) -> float:
        """Exchanges of all sessions together."""
        return sum(self.each) / self.seconds

    @property
    def alone_per_s(self) -> float:
        """Exchanges of one session alone."""
        return sum(self.alone) / (2 * self.alone_seconds)

    def findings(self) -> list[Finding]:
        """Measured against promised."""
        return [
            Finding("all sessions' rate / one session's alone", self.total_per_s / self.alone_per_s, LEAST_TOTAL),
            Finding("slowest session / fastest", min(self.each) / max(self.each), LEAST_SHARE),
            Finding(
                f"CPU of a server with {IDLE_SESSIONS} silent sessions, of one core",
                self.idle_cpu_s / IDLE_SECONDS,
                MOST_IDLE_CPU,
                at_least=False,
            ),
        ]


def measure(clients: int, seconds: float) -> Counts:
    """All of it, at one server.

    Raises:
        AsyncDeltaError: A reply is missing or another session's, or a process died.
    """
    payload, alone_seconds = PAYLOADS["libero"], max(seconds / 4, 1.0)
    with ServerProcess("shm") as server:
        before = exchange_together(server, payload, 1, alone_seconds)
        each = exchange_together(server, payload, clients, seconds)
        after = exchange_together(server, payload, 1, alone_seconds)
        idle_s = idle_cpu_s(server, payload, IDLE_SESSIONS, IDLE_SECONDS)
    return Counts(seconds, each, alone_seconds, (before[0], after[0]), idle_s)


def _print(console: Console, counts: Counts, findings: Sequence[Finding]) -> None:
    console.print(
        f"{len(counts.each)} sessions: {counts.total_per_s:,.0f} exchanges/s together, {min(counts.each):,} to "
        f"{max(counts.each):,} each; one alone: {counts.alone_per_s:,.0f}/s. None lost, none crossed."
    )
    table = Table("what", "limit", "measured", "kept")
    for finding in findings:
        limit = f"at {'least' if finding.at_least else 'most'} {finding.bound:g}"
        table.add_row(finding.what, limit, f"{finding.measured:.3g}", "yes" if finding.kept else "NO")
    console.print(table)


def main() -> int:
    """Run the command.

    Returns:
        0, or 1 when ``--check`` is given and a limit is not kept.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16, help="processes that exchange at once, at most 64")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long")
    parser.add_argument("--check", action="store_true", help="fail when a limit is not kept")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    flags = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    environment = describe_machine()
    counts = measure(flags.clients, flags.seconds)
    findings = counts.findings()
    results = {**asdict(counts), "findings": [asdict(finding) for finding in findings], "environment": environment}
    (flags.output_dir / "sessions.json").write_text(json.dumps(results, indent=1) + "\n")
    _print(console, counts, findings)
    console.print(f"wrote {flags.output_dir / 'sessions.json'}")
    return EXIT_BREACH if flags.check and not all(finding.kept for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
