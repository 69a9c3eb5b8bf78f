"""Compares a run's ratios with the limits in ``harness/limits.py``; fails on a breach.

::

    python benchmarks/check.py                              a quick run, then the comparison
    python benchmarks/check.py outputs/bench/latency.json   of a run that is there

Ratios of one run only: an absolute time says more about the machine than about the code. A busy machine shifts ratios
too, since Python suffers more from a shared cache than the C floor does: look at ``uptime`` first.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from harness.limits import check_limits
from harness.report import findings_table
from rich.console import Console

from async_delta_inference.command_line import run_command

EXIT_BREACH = 1


def main() -> int:
    """Run the command.

    Returns:
        0, or 1 when a limit is not kept or was not measured.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="a latency.json; left out: a quick run is made")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench-check"))
    flags = parser.parse_args()
    if flags.results is not None:
        results = json.loads(flags.results.read_text())
    else:
        from harness.plan import quick_plan
        from latency import run_plan

        results = run_plan(quick_plan(), flags.output_dir)
    findings = check_limits(results)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(findings_table(findings))
    broken = [finding.limit.what for finding in findings if not finding.kept]
    for what in broken:
        console.print(f"not kept: {what}")
    return EXIT_BREACH if broken else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
