"""Compares ``async-delta-eval`` in parity mode with ``lerobot-eval``: the same episodes, and the seconds they take.

::

    python benchmarks/versus_lerobot_eval.py               a random ACT, ten episodes of libero_object task 0
    python benchmarks/versus_lerobot_eval.py --checkpoint=FOLDER --episodes=20 --rounds=3

Both run as whole processes, in turn, on the same checkpoint, with frames of the checkpoint's size, chunks of its
``n_action_steps``, full-length episodes, their default hard reset, one environment, and no videos. Fails when an
episode ends otherwise, or when ours needs more than a fifth of the seconds per episode.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from harness.evaluators import OURS, THEIRS, Run, Subject, differences, run_evaluator
from harness.machine import describe_machine
from rich.console import Console
from rich.table import Table

from async_delta_inference.command_line import run_command
from async_delta_inference.errors import ConfigError

EXIT_BREACH = 1
AT_LEAST = 5.0
"""How many times faster ours has to be."""


def main() -> int:
    """Run the command.

    Returns:
        0, or 1 when an episode differs or the ratio is too small.
    """
    flags = _flags()
    output_dir: Path = flags.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = flags.checkpoint or _random_checkpoint(output_dir / "random_act", flags)
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"--checkpoint={checkpoint} has no config.json")
    subject = Subject(checkpoint.resolve(), flags.suite, flags.task_id, flags.episodes, flags.episode_length)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    results: dict[str, Any] = {"machine": describe_machine(), "subject": _described(subject)}
    rounds = [_round(index, subject, output_dir, console) for index in range(flags.rounds)]
    results |= compare(rounds)
    if not flags.no_profile:
        from harness.reset_profile import profile_resets

        console.print("profiling resets")
        os.environ.setdefault("MUJOCO_GL", "egl")
        results["profile"] = profile_resets(flags.suite, flags.task_id, subject.frame_size)
    path = output_dir / "versus_lerobot_eval.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    _print(console, results)
    console.print(f"wrote {path}")
    return 0 if results["same_results"] and results["ratio"]["median"] >= flags.at_least else EXIT_BREACH


def compare(rounds: list[dict[str, Run]]) -> dict[str, Any]:
    """Results and seconds of all rounds.

    Args:
        rounds: Both evaluators' run of each.

    Returns:
        ``runs``; ``same_results`` and ``differences``; ``seconds_per_episode``, the medians of ``eval_ep_s``;
        ``ratio``, lerobot-eval's seconds per episode to ours, taken within each round; ``wall_ratio`` and ``cpu_ratio``
        of the whole processes; ``breakdown`` of our seconds per episode.
    """
    runs = [run for both in rounds for run in both.values()]
    found = differences(runs)
    ratios = [both[THEIRS].eval_ep_s / both[OURS].eval_ep_s for both in rounds]
    ours = [both[OURS] for both in rounds]
    return {
        "runs": [run.as_json() for run in runs],
        "same_results": not found,
        "differences": found,
        "seconds_per_episode": {
            name: statistics.median(both[name].eval_ep_s for both in rounds) for name in (OURS, THEIRS)
        },
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "wall_ratio": statistics.median(both[THEIRS].wall_s / both[OURS].wall_s for both in rounds),
        "cpu_ratio": statistics.median(both[THEIRS].cpu_s / both[OURS].cpu_s for both in rounds),
        "breakdown": {
            part: statistics.median(_breakdown(run)[part] for run in ours) for part in ("reset_s", "step_s", "wait_s")
        },
    }


def _breakdown(run: Run) -> dict[str, float]:
    """Seconds of one of our episodes: resetting (the first one's building is spread over all), stepping with the frames
    that are sent, and standing still for chunks (their median latency times their number).
    """
    figures = run.figures
    stepping_s = figures["mean_length"] / figures["control_hz"]
    wait_s = figures["latency_p50_s"] * figures["chunks"] / len(run.successes)
    return {"reset_s": figures["reset_s"], "step_s": stepping_s - wait_s, "wait_s": wait_s}


def _round(index: int, subject: Subject, output_dir: Path, console: Console) -> dict[str, Run]:
    """Both evaluators, who goes first changing from round to round."""
    order = (OURS, THEIRS) if index % 2 == 0 else (THEIRS, OURS)
    runs = {}
    for evaluator in order:
        runs[evaluator] = run = run_evaluator(evaluator, subject, output_dir / f"round_{index}" / evaluator)
        console.print(f"round {index}: {evaluator}: {run.eval_ep_s:.2f} s per episode, {run.wall_s:.0f} s in all")
    return runs


def _print(console: Console, results: dict[str, Any]) -> None:
    table = Table("", OURS, THEIRS, "ratio", title="seconds per episode, median of the rounds")
    seconds, ratio = results["seconds_per_episode"], results["ratio"]
    table.add_row(
        "eval_ep_s",
        f"{seconds[OURS]:.2f}",
        f"{seconds[THEIRS]:.2f}",
        f"{ratio['median']:.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})",
    )
    console.print(table)
    console.print(f"whole processes: {results['wall_ratio']:.1f} in wall time, {results['cpu_ratio']:.1f} in CPU time")
    console.print("ours: " + ", ".join(f"{part} {value:.2f}" for part, value in results["breakdown"].items()))
    console.print("same results per episode" if results["same_results"] else "RESULTS DIFFER")
    for difference in results["differences"]:
        console.print(difference)
    for name, profile in results.get("profile", {}).items():
        for index, parts in enumerate(profile["resets"]):
            console.print(f"{name} reset {index}: {_parts(parts, 's')}")
        console.print(f"{name} step: {_parts({part: 1e3 * value for part, value in profile['step'].items()}, 'ms')}")


def _parts(parts: dict[str, float], unit: str) -> str:
    listed = sorted(parts.items(), key=lambda item: -item[1])
    return f"{sum(parts.values()):.2f} {unit}: " + ", ".join(f"{name} {value:.2f}" for name, value in listed)


def _described(subject: Subject) -> dict[str, Any]:
    return {
        "checkpoint": str(subject.checkpoint),
        "suite": subject.suite,
        "task_id": subject.task_id,
        "episodes": subject.episodes,
        "episode_length": subject.episode_length,
        "frame_size": list(subject.frame_size),
        "n_action_steps": subject.policy_config["n_action_steps"],
    }


def _random_checkpoint(folder: Path, flags: argparse.Namespace) -> Path:
    """A random ACT that sees frames as they are rendered, made once."""
    if (folder / "config.json").is_file():
        return folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    from random_act import build_random_act

    from async_delta_inference.client.environments import make_environments
    from async_delta_inference.client.environments.libero_setup import prepare_libero

    prepare_libero()
    from lerobot.envs.configs import LiberoEnv

    size_px = flags.frame_size
    env = LiberoEnv(task=flags.suite, task_ids=[flags.task_id], observation_height=size_px, observation_width=size_px)
    (environment,) = make_environments(env)
    built: Path = build_random_act(
        folder, environment.features, environment.action_dim, image_size=None, chunk_size=flags.chunk_size
    )
    environment.close()
    return built


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="policy of an act checkpoint's folder; none: a random ACT")
    parser.add_argument("--suite", default="libero_object", help="of LIBERO")
    parser.add_argument("--task_id", type=int, default=0, help="within the suite")
    parser.add_argument("--episodes", type=int, default=10, help="of each run")
    parser.add_argument("--rounds", type=int, default=1, help="how often both are run")
    parser.add_argument(
        "--episode_length", type=int, help="steps; none: the suite's own limit, as the comparison wants"
    )
    parser.add_argument("--frame_size", type=int, default=256, help="of the random ACT, pixels")
    parser.add_argument("--chunk_size", type=int, default=50, help="of the random ACT, actions")
    parser.add_argument("--at_least", type=float, default=AT_LEAST, help="how many times faster ours has to be")
    parser.add_argument("--no_profile", action="store_true", help="leave the profile of resets and steps out")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/versus_lerobot_eval"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run_command(main))
