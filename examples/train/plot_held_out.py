"""Draws and tabulates what `evaluate_held_out.py` wrote: success rates over delays, one line an aggregation.

Prints a Markdown table and writes a picture. Bars are 95 % Wilson score intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


Panel = tuple[int, str]
"""Task and what happens on starvation: one table and one panel of the picture each."""


def read_panels(files: list[Path]) -> dict[Panel, list[Entry]]:
    """The settings' results by panel, in the order they were written."""
    panels: dict[Panel, list[Entry]] = {}
    for line in (line for file in files for line in file.read_text().splitlines()):
        entry = json.loads(line)
        panels.setdefault((entry["task_id"], entry["on_starvation"]), []).append(entry)
    return panels


def title(panel: Panel) -> str:
    """For people."""
    return f"libero_object task {panel[0]}, --on_starvation={panel[1]}"


def cell(entry: Entry | None) -> str:
    """`7 of 10 (40-89 %)`."""
    if entry is None:
        return "-"
    low, high = (round(100 * bound) for bound in entry["interval"])
    return f"{entry['n_successes']} of {entry['n_episodes']} ({low}-{high} %)"


def markdown_tables(panels: dict[Panel, list[Entry]]) -> str:
    """Rows are delays in control steps, columns aggregations."""
    tables = []
    for panel, entries in panels.items():
        known = {(entry["delay_steps"], entry["aggregate"]): entry for entry in entries}
        names = list(dict.fromkeys(name for _, name in known))
        lines = [f"| delay, steps | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for delay in sorted({delay for delay, _ in known}):
            lines.append(f"| {delay} | {' | '.join(cell(known.get((delay, name))) for name in names)} |")
        tables.append(f"{title(panel)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(tables)


def draw(panels: dict[Panel, list[Entry]], path: Path) -> None:
    """Writes the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(entry["aggregate"] for entries in panels.values() for entry in entries))
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (panel, entries) in zip(all_axes, panels.items(), strict=True):
        axes.set(title=title(panel), xlabel="inference delay, control steps of 50 ms", ylim=(-0.02, 1.02))
        for number, name in enumerate(names):
            # Side by side, so that equal rates do not hide each other.
            draw_line(axes, [e for e in entries if e["aggregate"] == name], name, 0.15 * (number - len(names) / 2))
        axes.grid(True, alpha=0.3)
    all_axes[0].set_ylabel("success rate on held-out init states")
    all_axes[0].legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_line(axes: Any, entries: list[Entry], name: str, shift: float) -> None:
    """Draws one aggregation's rates over the delays, moved sideways by `shift` steps."""
    entries = sorted(entries, key=lambda entry: entry["delay_steps"])
    rates = [entry["n_successes"] / entry["n_episodes"] for entry in entries]
    below = [rate - entry["interval"][0] for rate, entry in zip(rates, entries, strict=True)]
    above = [entry["interval"][1] - rate for rate, entry in zip(rates, entries, strict=True)]
    places = [entry["delay_steps"] + shift for entry in entries]
    axes.errorbar(places, rates, yerr=(below, above), marker="o", capsize=2, linewidth=1, label=name)


def main() -> None:
    """Prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines of evaluate_held_out.py")
    parser.add_argument("--output", type=Path, default=Path("outputs/delays.png"))
    args = parser.parse_args()
    panels = read_panels(args.results)
    print(markdown_tables(panels))
    draw(panels, args.output)


if __name__ == "__main__":
    main()
