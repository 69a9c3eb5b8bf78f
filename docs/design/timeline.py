"""Draws timeline.svg: what a delay of 3 steps does to a queue of chunks of 10."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

STEPS, CHUNK, DELAY, THRESHOLD = 24, 10, 3, 5
ROWS = {"wait (default)": 2.0, "hold": 0.0}


def main() -> None:
    """Write the picture beside this file."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes, "wait (default)", first_merge=0)
    draw(axes, "hold", first_merge=DELAY)
    axes.set(xlim=(-3.6, STEPS + 0.2), ylim=(-0.9, 3.5), xlabel="environment step = simulated time")
    axes.set_xticks(range(0, STEPS + 1, 2))
    axes.set_yticks([])
    axes.set_title(f"simulated clock: --inference_delay={DELAY}, chunks of {CHUNK}, --chunk_size_threshold=0.5")
    for spine in ("top", "left", "right"):
        axes.spines[spine].set_visible(False)
    figure.savefig(Path(__file__).with_name("timeline.svg"), metadata={"Date": None})


def draw(axes: object, mode: str, first_merge: int) -> None:
    """One row: the chunk that each step's action comes from, requests and merges."""
    y = ROWS[mode]
    axes.text(-3.5, y + 0.3, mode, va="center")
    merges = {first_merge: 0}
    request = CHUNK - THRESHOLD
    while request < STEPS:
        merges[request + DELAY] = request
        request += THRESHOLD
    source = None
    for step in range(STEPS):
        source = merges.get(step, source)
        colour = "0.85" if source is None else f"C{(source // THRESHOLD) % 6}"
        axes.add_patch(Rectangle((step, y), 1, 0.6, facecolor=colour, edgecolor="white"))
        if source is None:
            axes.text(step + 0.5, y + 0.3, "hold", ha="center", va="center", fontsize=7)
    for merge, asked in merges.items():
        if asked < merge < STEPS:
            arrow = FancyArrowPatch(
                (asked, y + 0.62), (merge + 0.02, y + 0.62), connectionstyle="arc3,rad=-0.45", arrowstyle="-|>",
                mutation_scale=9, color=f"C{(asked // THRESHOLD) % 6}",
            )
            axes.add_patch(arrow)
    if first_merge == 0:
        axes.text(0.1, y - 0.3, "the simulator stands still until the first chunk is there", fontsize=8)
    else:
        axes.text(0.1, y - 0.3, "arrow: observation sent → its chunk takes effect, 3 steps later; "
                  "actions of steps that passed are dropped, overlapping ones aggregated", fontsize=8)


if __name__ == "__main__":
    main()
