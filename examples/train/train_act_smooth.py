"""Trains ACT that knows which actions are still to come: `lerobot-policy-act-smooth`, an installed plugin, as it is.

Its network is ACT's with one more token for each action that will be executed before its answer takes effect. So it
starts from a trained ACT, and that one's image encoder stays as it is: the frames go through it once, and a step of
training takes hundredths of a second. Every sample draws its own delay, 0 included, which the plugin's own loss leaves
out: an episode's first observation has nothing before it.

Run it again with the same `--output` and it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from frame_cache import FrameCache, batch_indices
from torch import Tensor, nn
from training_loop import WEIGHT_DECAY, last_checkpoint, run_steps, save_checkpoint, update

LOG_EVERY_STEPS = 100
ENCODING_BATCH = 32


def policy_like(initial: Path, longest_delay: int) -> Any:
    """The plugin's policy of the size of a trained ACT, with all of that one's weights that it has, too."""
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    from lerobot_policy_act_smooth import ACTSmoothConfig, ACTSmoothPolicy

    act = ACTPolicy.from_pretrained(initial)
    alike = {
        name: getattr(act.config, name)
        for name in (
            *("input_features", "output_features", "normalization_mapping", "chunk_size", "n_action_steps", "dropout"),
            *("vision_backbone", "dim_model", "n_heads", "dim_feedforward", "n_encoder_layers", "n_decoder_layers"),
            *("use_vae", "latent_dim", "n_vae_encoder_layers", "pre_norm", "feedforward_activation"),
        )
    }
    # LIBERO's actions are displacements already: relative to the first of them they would be accelerations.
    config = ACTSmoothConfig(
        **alike,
        pretrained_backbone_weights=None,
        length_prefix_past=0,
        length_prefix_future=longest_delay,
        use_action_relative=False,
        device="cpu",
        push_to_hub=False,
    )
    policy = ACTSmoothPolicy(config)
    take_over(policy, act.state_dict())
    return policy


def take_over(policy: nn.Module, theirs: dict[str, Tensor]) -> None:
    """Copies weights of the same name; of an embedding of fewer tokens, those that there are.

    Raises:
        ValueError: The backbone is not among them.
    """
    ours = policy.state_dict()
    copied = 0
    for name, weights in theirs.items():
        target = ours.get(name)
        if target is not None and target.shape[1:] == weights.shape[1:] and len(target) >= len(weights):
            target[: len(weights)].copy_(weights)
            copied += name.startswith("model.backbone.")
    if not copied:
        raise ValueError("the initial checkpoint has no image encoder that fits")
    policy.load_state_dict(ours)


class _AsIs(nn.Module):
    """Stands for the image encoder where images come encoded."""

    def forward(self, encoded: Tensor) -> dict[str, Tensor]:
        return {"feature_map": encoded}


@contextmanager
def images_encoded(model: nn.Module) -> Iterator[nn.Module]:
    """Within, the model is to be given feature maps instead of images; gives the encoder that makes them."""
    backbone, model.backbone = model.backbone, _AsIs()
    try:
        yield backbone
    finally:
        model.backbone = backbone


class Samples:
    """What the network is given for every frame that training may start at, prepared once.

    Args:
        cache: The frames; its chunks are as long as the longest delay and the policy's chunk together.
        preprocessor: The policy's.
        policy: Its image encoder is used.
    """

    def __init__(self, cache: FrameCache, preprocessor: Any, policy: Any) -> None:
        self._cameras = list(policy.config.image_features)
        parts: list[dict[str, Tensor]] = []
        frames = cache.sample_frames
        with torch.inference_mode():
            for start in range(0, len(frames), ENCODING_BATCH):
                batch = preprocessor(cache.batch(frames[start : start + ENCODING_BATCH]))
                part = {key: policy.model.backbone(batch[key])["feature_map"] for key in self._cameras}
                rest = ("observation.state", "action", "action_is_pad")
                parts.append(part | {key: batch[key] for key in rest})
        self._columns = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        # Made in inference mode, they could not be part of a graph.
        self._columns = {key: column.clone() for key, column in self._columns.items()}

    def __len__(self) -> int:
        return len(self._columns["action"])

    def batch(self, indices: Tensor, delays: Tensor, longest: int, chunk_size: int) -> tuple[dict, Tensor, Tensor]:
        """A batch as the plugin has it in inference, and what it is to answer.

        Args:
            indices: int64 (B,).
            delays: int64 (B,), how many of the next actions each sample is told.
            longest: The largest delay.
            chunk_size: Actions to predict.

        Returns:
            The batch; the actions (B, chunk_size, A) from the delay on; and where there are none any more.
        """
        picked = {key: column[indices] for key, column in self._columns.items()}
        told, wanted, is_pad = told_and_wanted(
            picked.pop("action"), picked.pop("action_is_pad"), delays, longest, chunk_size
        )
        return {**picked, **told, "observation.images": [picked[key] for key in self._cameras]}, wanted, is_pad


def told_and_wanted(
    actions: Tensor, is_pad: Tensor, delays: Tensor, longest: int, chunk_size: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What each sample is told of its next actions, and which ones it is to answer with.

    Args:
        actions: (B, longest + chunk_size, A), from the observation on.
        is_pad: bool, of the same; where there are none any more.
        delays: int64 (B,), how many it is told.
        longest: The largest of those.
        chunk_size: How many it answers with.

    Returns:
        The plugin's two entries of the batch; the actions (B, chunk_size, A) from the delay on; where those are none.
    """
    told = {
        "inference_action": actions[:, :longest],
        "inference_action_is_pad": is_pad[:, :longest] | (torch.arange(longest) >= delays[:, None]),
    }
    steps, rows = delays[:, None] + torch.arange(chunk_size), torch.arange(len(actions))[:, None]
    return told, actions[rows, steps], is_pad[rows, steps]


class Trainer:
    """The policy, what it is trained on, and the step it has reached.

    Args:
        args: The command line.
        last: Checkpoint to go on from, or None.
    """

    def __init__(self, args: argparse.Namespace, last: Path | None) -> None:
        from lerobot.policies import make_pre_post_processors

        self._args = args
        self.policy = policy_like(args.initial, args.longest_delay)
        self._chunk_size = self.policy.config.chunk_size
        # Those of the ACT: what its weights know is in its units.
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            self.policy.config, pretrained_path=str(args.initial)
        )
        cache = FrameCache(args.dataset, args.longest_delay + self._chunk_size, args.episodes)
        self._samples = Samples(cache, self.preprocessor, self.policy)
        trained = [p for name, p in self.policy.named_parameters() if not name.startswith("model.backbone.")]
        self._optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, args.lr, total_steps=args.steps + 1, pct_start=0.05
        )
        self.step = 0
        if last is not None:
            self._go_on_from(last)

    def _go_on_from(self, folder: Path) -> None:
        state: dict[str, Any] = torch.load(folder / "training_state.pt", weights_only=True)
        self.step = state["step"]
        self.policy.load_state_dict(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def train_step(self) -> float:
        """Makes one update and returns the loss."""
        args = self._args
        indices = batch_indices(torch.arange(len(self._samples)), args.batch_size, self.step, args.seed)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + self.step)
        delays = torch.randint(args.longest_delay + 1, (args.batch_size,), generator=generator)
        batch, wanted, is_pad = self._samples.batch(indices, delays, args.longest_delay, self._chunk_size)
        with images_encoded(self.policy.model):
            predicted, _ = self.policy.model(batch)
        loss = (torch.nn.functional.l1_loss(predicted, wanted, reduction="none") * ~is_pad[..., None]).mean()
        self.step += 1
        return update(self.policy, loss, self._optimizer, self._schedule)

    def save(self, folder: Path) -> None:
        """Writes `pretrained_model`, as lerobot-train does, and the state to go on from."""
        state = {
            "step": self.step,
            "policy": self.policy.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        save_checkpoint(folder, (self.policy, self.preprocessor, self.postprocessor), state)


def train(args: argparse.Namespace) -> None:
    """Trains until `args.steps`, saving every `args.save_freq` steps."""
    torch.manual_seed(args.seed)
    trainer = Trainer(args, last_checkpoint(args.output))
    run_steps(trainer, args, LOG_EVERY_STEPS)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the LeRobotDataset")
    parser.add_argument("--output", type=Path, required=True, help="folder for the run")
    parser.add_argument("--initial", type=Path, required=True, help="checkpoint of an ACT to start from")
    parser.add_argument("--longest-delay", type=int, default=10, help="in steps; the plugin's length_prefix_future")
    parser.add_argument("--episodes", type=int, nargs="+", help="train on these episodes of the dataset only")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--save-freq", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
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
