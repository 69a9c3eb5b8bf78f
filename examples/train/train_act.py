"""Trains ACT on a dataset of demonstrations, on two CPU cores, with a small loop around LeRobot's own pieces.

LeRobot's: dataset, policy and its loss, processors, optimizer, schedule, checkpoint format. Ours: the loop, which keeps
all frames in memory. `lerobot-train` works offline and on a CPU too, from the same initial checkpoint, but its loader
decodes every image again for every sample and cost as much time as the network (README.md has the measurement).

Run it again with the same `--output` and it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from act_init import ActSize, save_initial_checkpoint
from frame_cache import FrameCache, batch_indices
from training_loop import WEIGHT_DECAY, last_checkpoint, run_steps, save_checkpoint, update

if TYPE_CHECKING:
    from lerobot.policies.act.modeling_act import ACTPolicy

LOG_EVERY_STEPS = 25


class Trainer:
    """A policy with its processors, optimizer and schedule, and the step it has reached."""

    def __init__(self, args: argparse.Namespace, initial: Path, cache: FrameCache) -> None:
        """Starts from the checkpoint `initial`, with the dataset's own statistics for normalization."""
        from lerobot.optim.optimizers import AdamWConfig
        from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
        from lerobot.policies import make_pre_post_processors
        from lerobot.policies.act.modeling_act import ACTPolicy

        self._args = args
        self._cache = cache
        self.step = 0
        self.policy: ACTPolicy = ACTPolicy.from_pretrained(initial)
        # Measured 10 % faster for convolutions on a CPU.
        self.policy.to(memory_format=torch.channels_last)
        self.policy.config.optimizer_lr_backbone = args.lr  # Nothing is pretrained, so nothing learns slower.
        stats = {"stats": cache.stats}
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            self.policy.config,
            pretrained_path=str(initial),
            preprocessor_overrides={"normalizer_processor": stats},
            postprocessor_overrides={"unnormalizer_processor": stats},
        )
        self._optimizer = AdamWConfig(lr=args.lr, weight_decay=WEIGHT_DECAY).build(self.policy.get_optim_params())
        schedule = CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=max(1, args.steps // 15),
            num_decay_steps=args.steps,
            peak_lr=args.lr,
            decay_lr=args.lr / 50,
        )
        self._schedule = schedule.build(self._optimizer, args.steps)

    def train_step(self) -> float:
        """Makes one update and returns the loss."""
        args = self._args
        indices = batch_indices(self._cache.sample_frames, args.batch_size, self.step, args.seed)
        loss, _ = self.policy.forward(self.preprocessor(self._cache.batch(indices)))
        self.step += 1
        return update(self.policy, loss, self._optimizer, self._schedule)

    def save(self, folder: Path) -> None:
        """Writes `pretrained_model`, as lerobot-train does, and the state to go on from."""
        state = {"step": self.step, "optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict()}
        save_checkpoint(folder, (self.policy, self.preprocessor, self.postprocessor), state)

    def load_state(self, folder: Path) -> None:
        """Goes on from a saved state; the policy itself comes from the same folder's `pretrained_model`."""
        state: dict[str, Any] = torch.load(folder / "training_state.pt", weights_only=True)
        self.step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


def train(args: argparse.Namespace) -> None:
    """Trains until `args.steps`, saving every `args.save_freq` steps."""
    torch.manual_seed(args.seed)
    initial = args.initial or args.output / "initial"
    if not (initial / "config.json").exists():
        save_initial_checkpoint(args.dataset, initial, ActSize(chunk_size=args.chunk_size), args.seed, args.resize_px)
    last = last_checkpoint(args.output)
    trainer = Trainer(
        args,
        initial if last is None else last / "pretrained_model",
        FrameCache(args.dataset, args.chunk_size, args.episodes),
    )
    if last is not None:
        trainer.load_state(last)
    run_steps(trainer, args, LOG_EVERY_STEPS)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the LeRobotDataset")
    parser.add_argument("--output", type=Path, required=True, help="folder for the initial checkpoint and the run")
    parser.add_argument("--initial", type=Path, help="checkpoint to start from; a new one is built if not given")
    parser.add_argument("--episodes", type=int, nargs="+", help="train on these episodes of the dataset only")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--save-freq", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk-size", type=int, default=ActSize.chunk_size)
    parser.add_argument("--resize-px", type=int, help="side to which the policy's preprocessor shrinks images")
    parser.add_argument("--threads", type=int, default=1, help="more lose when something else runs on the cores")
    return parser.parse_args()


def main() -> None:
    """Trains."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
