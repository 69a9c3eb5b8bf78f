"""Tries environments on this machine and writes the table of ``docs/environments.md``.

::

    python benchmarks/environments.py                    # all of them, each in a process of its own
    python benchmarks/environments.py --only=so101,HalfCheetah-v5 --output=outputs/environments.md

For each: whether it is there, where it says that it succeeded, whether frames are rendered on demand, whether it is
repeatable (the same seed and actions twice, by two simulators), the seconds of a step with and without frames, and of
so many steps with every frame and with every 25th one looked at, compared bit for bit. One that cannot be run is a row
that says why.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
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
from async_delta_inference.client.environments.global_randomness import global_generators_of
from async_delta_inference.client.environments.outcome import SUCCESS_KEYS
from async_delta_inference.errors import AsyncDeltaError
from async_delta_inference.transport import Observation

DOCUMENT = Path(__file__).parents[1] / "docs" / "environments.md"
BEGIN, END = "<!-- written by benchmarks/environments.py -->\n", "<!-- end -->\n"
STEPS, LOOK_EVERY = 100, 25
FEWEST_STEPS, LONGEST_S = 30, 40.0
"""A simulator of seconds of processor time a step takes fewer steps."""
REPEATED_STEPS = 4
TIMEOUT_S = 1200.0


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
    Tried("so101", OURS.format("so101"), {"image_obs": True}),
    Tried(
        "gymnasium",
        OURS.format("gym-hil"),
        {"task": "gym_hil/PandaPickCubeBase-v0", "make_kwargs": {"image_obs": True}},
    ),
    Tried(
        "gymnasium",
        OURS.format("gym-hil"),
        {"task": "gym_hil/PandaArrangeBoxesBase-v0", "make_kwargs": {"image_obs": True}},
    ),
    Tried("gymnasium", OURS.format("mujoco"), {"task": "HalfCheetah-v5"}),
    Tried("gymnasium", OURS.format("mujoco"), {"task": "Ant-v5"}),
    Tried("gymnasium", OURS.format("gymnasium-robotics"), {"task": "gymnasium_robotics:FetchReach-v4"}),
    Tried("gymnasium", OURS.format("dm-control"), {"task": "dm_control/cheetah-run-v0", "episode_length": 1000}),
    Tried(
        "gymnasium",
        OURS.format("ogbench"),
        {"task": "ogbench:visual-cube-single-v0", "state_from_info": "proprio", "episode_length": 200},
    ),
    Tried("gymnasium", "gymnasium[classic-control]", {"task": "MountainCarContinuous-v0"}),
    Tried(
        "gymnasium",
        "mani-skill",
        {"task": "mani_skill.envs:PickCube-v1", "make_kwargs": {"obs_mode": "rgb", "num_envs": 1}},
    ),
]


@dataclass
class Record:
    """What some steps gave, and took.

    Args:
        told: By step, what must be equal whoever looks.
        frames: By step, where somebody looked.
        steps_s: Seconds of each.
        whole_s: Seconds of all, resets and looks included.
        processor_s: Of those, how many processors worked.
    """

    told: list[Any] = field(default_factory=list)
    frames: dict[int, dict[str, bytes]] = field(default_factory=dict)
    steps_s: list[float] = field(default_factory=list)
    whole_s: float = 0.0
    processor_s: float = 0.0


def measure(tried: Tried) -> dict[str, Any]:
    """One environment's row, in this process; one simulator after the other."""
    always, again = _made(tried), _made(tried)
    every = _run(always, STEPS, always_render=True)
    repeated = _run(again, REPEATED_STEPS, always_render=True)
    on_demand = _made(tried, render_on_demand=True)
    on_demand.reset(_spec(on_demand, 0))  # Tries what it may leave out.
    seldom = _run(on_demand, len(every.steps_s), always_render=False)
    return {
        "success": [key for key in SUCCESS_KEYS if key in getattr(on_demand, "info_keys", ())],
        "frames": _frames(on_demand),
        "holds": _holds(on_demand),
        "repeatable": repeated.told == every.told[: len(repeated.told)],
        "with_s": float(np.median(every.steps_s)),
        "without_s": float(np.median([s for i, s in enumerate(seldom.steps_s, 1) if i % LOOK_EVERY])),
        "steps": len(every.steps_s),
        "always_s": every.whole_s,
        "on_demand_s": seldom.whole_s,
        "processor_factor": every.processor_s / seldom.processor_s,
        "equal": every.told == seldom.told and every.frames == seldom.frames,
    }


def _made(tried: Tried, *, render_on_demand: bool = False) -> Environment:
    config = known_environments().get_choice_class(tried.env_type)(**tried.fields)
    return make_environments(config, EnvironmentOptions(render_on_demand=render_on_demand))[0]


def _run(env: Environment, steps: int, *, always_render: bool) -> Record:
    """So many steps, over as many episodes as that takes; a look at every so many-th. Closes the environment."""
    record = Record()
    began_s, worked_s = time.perf_counter(), time.process_time()
    with global_generators_of(_spec(env, 0)):
        env.reset(_spec(env, 0))
        for step in range(1, steps + 1):
            if _step(env, step, record, always_render=always_render):
                env.reset(_spec(env, step), render=always_render)
            if always_render and step >= FEWEST_STEPS and time.process_time() - worked_s > LONGEST_S:
                break
    record.whole_s, record.processor_s = time.perf_counter() - began_s, time.process_time() - worked_s
    env.close()
    return record


def _step(env: Environment, step: int, record: Record, *, always_render: bool) -> bool:
    """One step, noted; returns whether the episode is over."""
    looks = step % LOOK_EVERY == 0
    began_s = time.perf_counter()
    outcome = env.step(_action(env, step), render=always_render or looks)
    record.steps_s.append(time.perf_counter() - began_s)
    record.told.append((outcome, env.state().tobytes()))
    if looks:
        observation = Observation.empty(env.features)
        env.write_observation(observation)
        record.frames[step] = {camera: image.tobytes() for camera, image in observation.images.items()}
    return outcome.terminated or outcome.truncated


def _spec(env: Environment, episode: int) -> EpisodeSpec:
    return env.episode(episode, 1000 + episode)


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
        env.reset(_spec(env, 0))
        env.hold_action()
    except AsyncDeltaError:
        return False
    finally:
        env.close()
    return True


def _in_own_process(tried: Tried) -> dict[str, Any]:
    """Its row, or why there is none: a simulator may crash, hang, or end the program."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lerobot.envs.factory", "async_delta_inference.client.environments"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_into, args=(theirs, tried))
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            return {"failed": f"not within {TIMEOUT_S:g} s"}
        row: dict[str, Any] = ours.recv()
        return row
    except EOFError:
        process.join(5.0)
        return {"failed": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _measure_into(connection: Connection, tried: Tried) -> None:
    try:
        row = measure(tried)
    except BaseException as exc:  # noqa: BLE001 - SystemExit, too: that is its row
        row = {"failed": " ".join(f"{type(exc).__name__}: {exc}".split()).replace("|", "/")[:300]}
    connection.send(row)


def table(rows: dict[str, tuple[Tried, dict[str, Any]]]) -> str:
    """In Markdown."""
    head = ["environment", "installed by", "says success as", "frames on demand", "hold action", "repeatable"]
    head += [
        "step with frames, s",
        "without, s",
        "steps",
        "all with frames, s",
        "on demand, s",
        "factor",
        "in processor time",
    ]
    head += ["bit-equal"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, (tried, row) in rows.items():
        first = [f"`{name}`", f"`{tried.installed_by}`"]
        if "failed" in row:
            lines.append(" | ".join([*first, f"not run: {row['failed']}", *[""] * (len(head) - 3)]))
            continue
        success = ", ".join(f"`{key}`" for key in row["success"]) or "not at all: `n/a`"
        answers = [success, row["frames"], *("yes" if row[key] else "no" for key in ("holds", "repeatable"))]
        step_s = [f"{row[key]:.3g}" for key in ("with_s", "without_s")]
        whole_s = [f"{row[key]:.3g}" for key in ("always_s", "on_demand_s")]
        factors = [f"{factor:.1f}" for factor in (row["always_s"] / row["on_demand_s"], row["processor_factor"])]
        equal = "yes" if row["equal"] else "no"
        lines.append(" | ".join([*first, *answers, *step_s, str(row["steps"]), *whole_s, *factors, equal]))
    return "".join(f"| {line} |\n" for line in lines)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--note", default="", help="what else there is to say of the machine")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="file with the two marks, or a new one")
    flags = parser.parse_args()
    wanted = set(flags.only.split(",")) if flags.only else None
    rows = {}
    for tried in ENVIRONMENTS:
        if wanted is None or tried.name in wanted:
            rows[tried.name] = tried, _in_own_process(tried)
            print(tried.name, rows[tried.name][1], flush=True)
            _write(flags.output, rows, flags.note)
    print(f"wrote {flags.output}")


def _write(output: Path, rows: dict[str, tuple[Tried, dict[str, Any]]], note: str) -> None:
    """After every row, so that whoever ends the run keeps those there are."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, MUJOCO_GL={os.environ.get('MUJOCO_GL') or 'chosen'}"
    machine += f", {note}" if note else ""
    text = f"{BEGIN}\nOn {machine}.\n\n{table(rows)}{END}"
    if output.is_file():
        before, _, rest = output.read_text().partition(BEGIN)
        text = before + text + rest.partition(END)[2]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)


if __name__ == "__main__":
    main()
