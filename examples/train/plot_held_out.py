"""Draws and tabulates what `evaluate_held_out.py` wrote: success rates over delays, one line an aggregation.

Prints a Markdown table and writes a picture. Bars are 95 % Wilson score intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def read_entries(files: list[Path]) -> list[Entry]:
    """The settings' results, in the order they were written."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def cell(entry: Entry | None) -> str:
    """`7 of 10 (40-89 %)`."""
    if entry is None:
        return "-"
    low, high = (round(100 * bound) for bound in entry["interval"])
    return f"{entry['n_successes']} of {entry['n_episodes']} ({low}-{high} %)"


def markdown_table(entries: list[Entry]) -> str:
    """One table for each task: rows are delays in control steps, columns aggregations."""
    tables = []
    for task_id in sorted({entry["task_id"] for entry in entries}):
        known = {(e["delay_steps"], e["aggregate"]): e for e in entries if e["task_id"] == task_id}
        names = list(dict.fromkeys(name for _, name in known))
        lines = [f"| delay, steps | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for delay in sorted({delay for delay, _ in known}):
            lines.append(f"| {delay} | {' | '.join(cell(known.get((delay, name))) for name in names)} |")
        tables.append(f"Task {task_id}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(tables)


def draw(entries: list[Entry], path: Path) -> None:
    """Writes the picture: a panel for each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = sorted({entry["task_id"] for entry in entries})
    figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task_id in zip(panels, tasks, strict=True):
        axes.set(
            title=f"libero_object task {task_id}", xlabel="inference delay, control steps of 50 ms", ylim=(0, 1.02)
        )
        names = list(dict.fromkeys(entry["aggregate"] for entry in entries))
        for number, name in enumerate(names):
            line = sorted(
                (e for e in entries if e["task_id"] == task_id and e["aggregate"] == name),
                key=lambda entry: entry["delay_steps"],
            )
            rates = [e["n_successes"] / e["n_episodes"] for e in line]
            below = [rate - e["interval"][0] for rate, e in zip(rates, line, strict=True)]
            above = [e["interval"][1] - rate for rate, e in zip(rates, line, strict=True)]
            # Side by side, so that equal rates do not hide each other.
            places = [e["delay_steps"] + 0.15 * (number - (len(names) - 1) / 2) for e in line]
            axes.errorbar(places, rates, yerr=(below, above), marker="o", capsize=2, linewidth=1, label=name)
        axes.grid(True, alpha=0.3)
    panels[0].set_ylabel("success rate on held-out init states")
    panels[-1].legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines of evaluate_held_out.py")
    parser.add_argument("--output", type=Path, default=Path("docs/images/delays.png"))
    args = parser.parse_args()
    entries = read_entries(args.results)
    print(markdown_table(entries))
    draw(entries, args.output)


if __name__ == "__main__":
    main()
