"""Tries environments on this machine and writes the table of ``docs/environments.md``.

::

    python benchmarks/environments.py                    # all of them, each in a process of its own
    python benchmarks/environments.py --only=so101,HalfCheetah-v5 --output=outputs/environments.md

For each: whether it is there, where it says that it succeeded, whether frames are rendered on demand, whether it is
repeatable (the same seed and actions twice, by two simulators), and the seconds of a step with and without frames.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from async_delta_inference.client.environments import (
    Environment,
    EnvironmentOptions,
    EpisodeSpec,
    known_environments,
    make_environments,
)
from async_delta_inference.client.environments.outcome import SUCCESS_KEYS
from async_delta_inference.errors import AsyncDeltaError

DOCUMENT = Path(__file__).parents[1] / "docs" / "environments.md"
BEGIN, END = "<!-- written by benchmarks/environments.py -->\n", "<!-- end -->\n"
STEPS = 6
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Tried:
    """One environment.

    Args:
        env_type: ``--env.type``.
        installed_by: What pip takes.
        fields: Of its configuration.
    """

    env_type: str
    installed_by: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return str(self.fields["task"]) if self.env_type == "gymnasium" else self.env_type


OURS = "async-delta-inference[{}]"
SMALL = {"observation_height": 256, "observation_width": 256}
ENVIRONMENTS = [
    Tried("libero", OURS.format("libero"), {"task": "libero_object", "task_ids": [0], **SMALL}),
    Tried("metaworld", OURS.format("metaworld"), {"task": "reach-v3"}),
    Tried("aloha", OURS.format("aloha")),
    Tried("pusht", OURS.format("pusht")),
    Tried("so101", "lerobot-env-so101", {"image_obs": True}),
    Tried("gymnasium", "gym-hil", {"task": "gym_hil/PandaPickCubeBase-v0", "make_kwargs": {"image_obs": True}}),
    Tried("gymnasium", "gym-hil", {"task": "gym_hil/PandaArrangeBoxesBase-v0", "make_kwargs": {"image_obs": True}}),
    Tried("gymnasium", "gymnasium[mujoco]", {"task": "HalfCheetah-v5"}),
    Tried("gymnasium", "gymnasium[mujoco]", {"task": "Ant-v5"}),
    Tried("gymnasium", "gymnasium-robotics", {"task": "gymnasium_robotics:FetchReach-v4"}),
    Tried("gymnasium", "shimmy[dm-control]", {"task": "dm_control/cheetah-run-v0", "episode_length": 1000}),
    Tried(
        "gymnasium",
        "ogbench",
        {"task": "ogbench:visual-cube-single-v0", "state_from_info": "proprio/joint_pos", "episode_length": 200},
    ),
    Tried("gymnasium", "gymnasium[classic-control]", {"task": "MountainCarContinuous-v0"}),
]


def measure(tried: Tried) -> dict[str, Any]:
    """One environment's row, in this process."""
    config = known_environments().get_choice_class(tried.env_type)(**tried.fields)
    env, second = (make_environments(config, EnvironmentOptions(render_on_demand=True))[0] for _ in range(2))
    first, again = (_episode(one) for one in (env, second))
    row = {
        "success": [key for key in SUCCESS_KEYS if key in getattr(env, "info_keys", ())],
        "frames": _frames(env),
        "holds": _holds(env),
        "repeatable": first == again,
        "with_s": _step_s(env, render=True),
        "without_s": _step_s(env, render=False),
    }
    for one in (env, second):
        one.close()
    return row


def _episode(env: Environment) -> list[Any]:
    env.reset(_spec(env))
    told: list[Any] = [env.state().tobytes()]
    for step in range(STEPS):
        outcome = env.step(_action(env, step))
        told.append((outcome.reward, outcome.terminated, env.state().tobytes(), env.video_frame().tobytes()))
    return told


def _step_s(env: Environment, *, render: bool) -> float:
    env.reset(_spec(env))
    taken = []
    for step in range(STEPS):
        began_s = time.perf_counter()
        env.step(_action(env, step), render=render)
        taken.append(time.perf_counter() - began_s)
    return float(np.median(taken))


def _spec(env: Environment) -> EpisodeSpec:
    return env.episode(0, 1000)


def _action(env: Environment, step: int) -> np.ndarray:
    return np.random.default_rng((7, step)).uniform(-0.5, 0.5, env.action_dim).astype(np.float32)


def _frames(env: Any) -> str:
    proof = getattr(env, "_proof", None)
    if proof is None or (not proof.skips and proof.repeatable is None and not proof.reason):
        gated = env._traits.want_frames is not None or hasattr(env, "_gate")
        return "yes" if gated else "nothing to leave out"
    return "yes, proven" if proof.skips else f"no: {proof.reason}"


def _holds(env: Environment) -> bool:
    try:
        env.hold_action()
    except AsyncDeltaError:
        return False
    return True


def _in_own_process(index: int) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--one={index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not within {TIMEOUT_S:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def table(rows: dict[str, tuple[Tried, dict[str, Any]]]) -> str:
    """In Markdown."""
    head = ["environment", "installed by", "says success as", "frames on demand", "hold action", "repeatable"]
    head += ["step with frames, s", "without, s", "factor"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, (tried, row) in rows.items():
        first = [f"`{name}`", f"`{tried.installed_by}`"]
        if "failed" in row:
            lines.append(" | ".join([*first, f"not run: {row['failed']}", *[""] * (len(head) - 3)]))
            continue
        success = ", ".join(f"`{key}`" for key in row["success"]) or "not at all: `n/a`"
        answers = [success, row["frames"], *("yes" if row[key] else "no" for key in ("holds", "repeatable"))]
        factor = row["with_s"] / row["without_s"] if row["without_s"] else math.nan
        lines.append(" | ".join([*first, *answers, f"{row['with_s']:.3g}", f"{row['without_s']:.3g}", f"{factor:.3g}"]))
    return "".join(f"| {line} |\n" for line in lines)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="file with the two marks, or a new one")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one is not None:
        print(json.dumps(measure(ENVIRONMENTS[flags.one])))
        return
    wanted = set(flags.only.split(",")) if flags.only else None
    rows = {}
    for index, tried in enumerate(ENVIRONMENTS):
        if wanted is None or tried.name in wanted:
            rows[tried.name] = tried, _in_own_process(index)
            print(tried.name, rows[tried.name][1], flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, MUJOCO_GL={os.environ.get('MUJOCO_GL') or 'chosen'}"
    text = f"{BEGIN}\nOn {machine}.\n\n{table(rows)}{END}"
    if flags.output.is_file():
        before, _, rest = flags.output.read_text().partition(BEGIN)
        text = before + text + rest.partition(END)[2]
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(text)
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()
