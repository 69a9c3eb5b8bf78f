"""Trains ACT on a dataset with `lerobot-train` itself, with the settings that work on two CPU cores.

Run it again with the same `--output` and it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from act_init import ActSize, save_initial_checkpoint


def lerobot_train_command(args: argparse.Namespace, initial: Path) -> list[str]:
    """Builds the `lerobot-train` command line that starts from the checkpoint `initial`."""
    warmup_steps = max(1, min(200, args.steps // 10))
    options = {
        "policy.path": initial,
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "dataset.repo_id": f"local/{args.dataset.name}",
        "dataset.root": args.dataset,
        "output_dir": args.output / "run",
        "steps": args.steps,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "save_freq": args.save_freq,
        "log_freq": 25,
        "env_eval_freq": 0,
        "num_workers": 1,
        "wandb.enable": "false",
        # The preset's constant 1e-5 is for a pretrained backbone and 100 000 steps.
        "use_policy_training_preset": "false",
        "optimizer.type": "adamw",
        "optimizer.lr": args.lr,
        "optimizer.weight_decay": 1e-4,
        "optimizer.grad_clip_norm": 10.0,
        "scheduler.type": "cosine_decay_with_warmup",
        "scheduler.num_warmup_steps": warmup_steps,
        "scheduler.num_decay_steps": args.steps,
        "scheduler.peak_lr": args.lr,
        "scheduler.decay_lr": args.lr / 50,
    }
    return ["lerobot-train", *(f"--{name}={value}" for name, value in options.items())]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the LeRobotDataset")
    parser.add_argument("--output", type=Path, required=True, help="folder for the initial checkpoint and the run")
    parser.add_argument("--initial", type=Path, help="checkpoint to start from; a new one is built if not given")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--save-freq", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk-size", type=int, default=ActSize.chunk_size)
    return parser.parse_args()


def main() -> int:
    """Builds the initial checkpoint if there is none, then starts or resumes `lerobot-train`."""
    args = parse_args()
    initial = args.initial or args.output / "initial"
    if not (initial / "config.json").exists():
        save_initial_checkpoint(args.dataset, initial, ActSize(chunk_size=args.chunk_size), args.seed)
    last = args.output / "run" / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    if last.exists():
        command = ["lerobot-train", "--resume=true", f"--config_path={last}"]
    else:
        command = lerobot_train_command(args, initial)
    print(" ".join(command), flush=True)
    # One thread: more of them lose against a simulator or another job on the same two cores.
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    scripts = Path(sys.executable).parent
    return subprocess.run([str(scripts / command[0]), *command[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
