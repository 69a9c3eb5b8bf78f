"""``lerobot-eval`` and ``async-delta-eval`` as whole processes on the same checkpoint and episodes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from async_delta_inference.errors import AsyncDeltaError

__all__ = ["OURS", "THEIRS", "Run", "Subject", "command_of", "differences", "run_evaluator"]

OURS, THEIRS = "async-delta-eval", "lerobot-eval"
_THEIR_SCRIPT = Path(__file__).with_name("lerobot_eval_without_videos.py")
_PARITY = ("--clock=simulated", "--inference_delay=0", "--chunk_size_threshold=0", "--aggregate_fn_name=latest_only")


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Args:
        checkpoint: Folder, with LeRobot's ``config.json``.
        suite: Of LIBERO.
        task_id: Within it.
        episodes: How many.
        episode_length: Steps; None: the suite's own limit.
    """

    checkpoint: Path
    suite: str
    task_id: int
    episodes: int
    episode_length: int | None = None

    @property
    def policy_config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        config: dict[str, Any] = json.loads((self.checkpoint / "config.json").read_text())
        return config

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the checkpoint's images: another size PolicyServer would resize, and lerobot-eval not."""
        features = self.policy_config["input_features"].values()
        sizes = {tuple(feature["shape"][1:]) for feature in features if feature["type"] == "VISUAL"}
        if len(sizes) != 1:
            raise AsyncDeltaError(f"{self.checkpoint} takes images of several sizes or none: {sorted(sizes)}")
        height, width = sizes.pop()
        return height, width


@dataclass(frozen=True)
class Run:
    """One process from start to end.

    Args:
        evaluator: `OURS` or `THEIRS`.
        wall_s: Of the process, with imports, policy and server.
        cpu_s: Of it and its children.
        eval_ep_s: Seconds per episode by its own account, from the first reset to the last step.
        successes: One per episode.
        sum_rewards: One per episode.
        figures: Our ``async`` figures; empty for lerobot-eval.
    """

    evaluator: str
    wall_s: float
    cpu_s: float
    eval_ep_s: float
    successes: list[bool]
    sum_rewards: list[float]
    figures: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def command_of(evaluator: str, subject: Subject, output_dir: Path, n_envs: int = 1, sync: bool = True) -> list[str]:
    """The command line of one evaluator.

    Args:
        evaluator: `OURS` or `THEIRS`.
        subject: What to evaluate.
        output_dir: For what it writes.
        n_envs: Simulators at once; lerobot-eval's ``eval.batch_size``.
        sync: Whether lerobot-eval steps them in one process, one after the other.
    """
    height, width = subject.frame_size
    env = [
        "--env.type=libero",
        f"--env.task={subject.suite}",
        f"--env.task_ids=[{subject.task_id}]",
        f"--env.observation_height={height}",
        f"--env.observation_width={width}",
    ]
    if subject.episode_length is not None:
        env.append(f"--env.episode_length={subject.episode_length}")
    output = f"--output_dir={output_dir}"
    if evaluator == THEIRS:
        policy = [f"--policy.path={subject.checkpoint}", "--policy.device=cpu"]
        episodes = [f"--eval.batch_size={n_envs}", f"--eval.n_episodes={subject.episodes}"]
        episodes.append(f"--eval.use_async_envs={str(not sync).lower()}")
        # -P: our ``statistics`` lies beside the script.
        return [sys.executable, "-P", str(_THEIR_SCRIPT), *env, *policy, *episodes, output]
    config = subject.policy_config
    policy = [
        f"--policy_type={config['type']}",
        f"--pretrained_name_or_path={subject.checkpoint}",
        f"--actions_per_chunk={config['n_action_steps']}",
    ]
    episodes = [f"--n_episodes={subject.episodes}", f"--n_envs={n_envs}", "--progress=false", "--overwrite=true"]
    return [sys.executable, "-m", "async_delta_inference.client", *env, *policy, *episodes, *_PARITY, output]


def run_evaluator(evaluator: str, subject: Subject, output_dir: Path, n_envs: int = 1, sync: bool = True) -> Run:
    """Run one evaluator to its end.

    Args:
        evaluator: `OURS` or `THEIRS`.
        subject: What to evaluate.
        output_dir: For what it writes, and its log.
        n_envs: Simulators at once.
        sync: Whether lerobot-eval steps them one after the other.

    Raises:
        AsyncDeltaError: It failed; says where its log is.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    log = output_dir / "log.txt"
    environment = {"MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | os.environ
    cpu_before_s, started_s = _children_cpu_s(), time.perf_counter()
    with log.open("w") as stream:
        code = subprocess.run(
            command_of(evaluator, subject, output_dir, n_envs, sync),
            env=environment,
            stdout=stream,
            stderr=stream,
            check=False,
        ).returncode
    wall_s, cpu_s = time.perf_counter() - started_s, _children_cpu_s() - cpu_before_s
    if code:
        raise AsyncDeltaError(f"{evaluator} ended with code {code}: look into {log}")
    info = json.loads((output_dir / "eval_info.json").read_text())
    metrics = info["per_task"][0]["metrics"]
    overall = info["overall"]
    return Run(
        evaluator,
        wall_s,
        cpu_s,
        overall["eval_ep_s"],
        [bool(success) for success in metrics["successes"]],
        metrics["sum_rewards"],
        overall.get("async", {}),
    )


def differences(runs: list[Run]) -> list[str]:
    """What any run found otherwise than the first; empty when all agree on every episode."""
    first = runs[0]
    found = []
    for run in runs[1:]:
        for name in ("successes", "sum_rewards"):
            expected, got = getattr(first, name), getattr(run, name)
            if got != expected:
                found.append(f"{name} of {run.evaluator}: {got}; of {first.evaluator}: {expected}")
    return found


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
