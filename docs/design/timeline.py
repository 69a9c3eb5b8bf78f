"""Draws timeline.svg from runs of the real control loop in a stub environment: chunks of 10, a delay of 3 steps."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from stub_environment import StubEnvironment

from async_delta_inference.client import SimClient, SimClientConfig
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.transport.testing import ScriptedTransport, timestep_policy

STEPS, CHUNK, DELAY = 24, 10, 3
REALTIME_POLLS = {0: 0, 5: 1, 10: 4, 15: 2, 20: 3}
"""How many steps each answer takes in the realtime clock: what the machine happens to need."""
SIMULATED = {"clock": "simulated", "inference_delay": str(DELAY)}
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "realtime": ({"clock": "realtime"}, "a chunk takes effect when it arrives: sometimes sooner, sometimes later"),
    "simulated,\nwait": (
        SIMULATED,
        "always 3 steps later; with nothing queued the simulator stands still until it is there",
    ),
    "simulated,\nhold": (
        SIMULATED | {"on_starvation": "hold"},
        "with nothing queued the robot holds; the chunk is executed from its start when it comes",
    ),
    "simulated,\nskip": (
        SIMULATED | {"on_starvation": "skip"},
        "with nothing queued the robot holds and time passes; the first 3 actions are stale",
    ),
}


def main() -> None:
    """Write the picture beside this file."""
    mpl.rcParams["svg.hashsalt"] = "timeline"
    figure = Figure(figsize=(11, 7.9), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for index, (name, (flags, caption)) in enumerate(ROWS.items()):
        draw(axes, 2.2 * (len(ROWS) - 1 - index), name, caption, *run(flags))
    axes.set(
        xlim=(-3.2, STEPS + 0.2), ylim=(-1.1, 8.1), xlabel="environment step; in the simulated clock this is the time"
    )
    axes.set_xticks(range(0, STEPS + 1, 2))
    axes.set_yticks([])
    axes.set_title(
        "Colour: the observation that an action was computed from. Arrow: sent → takes effect. ● a frame is rendered"
    )
    for spine in ("top", "left", "right"):
        axes.spines[spine].set_visible(False)
    figure.savefig(Path(__file__).with_name("timeline.svg"), metadata={"Date": None})


def run(flags: dict[str, Any]) -> tuple[EpisodeResult, list[bool], dict[int, int]]:
    """One episode, before which of its steps a frame was rendered, and the steps that its timesteps were asked at."""
    environment = StubEnvironment(max_episode_steps=STEPS)
    transport = ScriptedTransport(
        timestep_policy(CHUNK), lambda observation: REALTIME_POLLS.get(observation.timestep, DELAY)
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SimClientConfig(
            env=None,
            policy_type="act",
            pretrained_name_or_path="a/b",
            actions_per_chunk=CHUNK,
            n_episodes=1,
            output_dir=Path(folder),
            progress=False,
            aggregate_fn_name="latest_only",
            **flags,
        )
        (episode,) = SimClient(config, environments=[environment], transport=transport).run().episodes
    asked_at = {sent.timestep: int(sent.state[0]) for sent in transport.sent}
    return episode, environment.rendered[0][:-1], asked_at


def draw(
    axes: Axes,
    y: float,
    name: str,
    caption: str,
    episode: EpisodeResult,
    rendered: list[bool],
    asked_at: dict[int, int],
) -> None:
    """One row."""
    colours = {chunk.requested_step: f"C{index % 6}" for index, chunk in enumerate(episode.chunks)}
    axes.text(-3.1, y + 0.3, name, va="center")
    axes.text(0.1, y - 0.55, caption, fontsize=8)
    for step, (_, source) in enumerate(episode.actions):
        held = source < 0
        axes.add_patch(
            Rectangle((step, y), 1, 0.6, facecolor="0.85" if held else colours[asked_at[source]], edgecolor="white")
        )
        if held:
            axes.text(step + 0.5, y + 0.3, "hold", ha="center", va="center", fontsize=7)
        if rendered[step]:
            axes.plot(step, y - 0.15, "o", color="0.2", markersize=4)
    for chunk in episode.chunks:
        if chunk.merged_step > chunk.requested_step:
            axes.add_patch(
                FancyArrowPatch(
                    (chunk.requested_step, y + 0.62),
                    (chunk.merged_step + 0.02, y + 0.62),
                    connectionstyle="arc3,rad=-0.45",
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color=colours[chunk.requested_step],
                )
            )


if __name__ == "__main__":
    main()
