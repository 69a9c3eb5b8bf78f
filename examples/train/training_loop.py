"""The loop around a policy that is trained: steps, what is printed of them, and checkpoints to go on from."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

WEIGHT_DECAY = 1e-4
GRAD_CLIP_NORM = 10.0


class Trainee(Protocol):
    """What is trained, and the step it has reached."""

    policy: Any
    step: int

    def train_step(self) -> float:
        """Makes one update and returns the loss."""

    def save(self, folder: Path) -> None:
        """Writes a checkpoint to go on from."""


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max((state.parent for state in output.glob("checkpoints/*/training_state.pt")), default=None)


def save_checkpoint(folder: Path, parts: Iterable[Any], state: dict[str, Any]) -> None:
    """Writes `pretrained_model`, as lerobot-train does, and the state to go on from."""
    for part in parts:
        part.save_pretrained(folder / "pretrained_model")
    # Written last and renamed: a checkpoint without it is not taken for a whole one.
    torch.save(state, folder / "partial.pt")
    (folder / "partial.pt").replace(folder / "training_state.pt")


def update(policy: Any, loss: torch.Tensor, optimizer: Any, schedule: Any) -> float:
    """One step of the optimizer; the loss as a number."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), GRAD_CLIP_NORM)
    optimizer.step()
    schedule.step()
    return float(loss.item())


def run_steps(trainee: Trainee, args: argparse.Namespace, log_every_steps: int) -> None:
    """Trains until `args.steps`, saving every `args.save_freq` steps."""
    losses: list[float] = []
    started_s, first_step = time.monotonic(), trainee.step
    trainee.policy.train()
    while trainee.step < args.steps:
        losses.append(trainee.train_step())
        if trainee.step % log_every_steps == 0:
            elapsed_s = time.monotonic() - started_s
            step_s = elapsed_s / (trainee.step - first_step)
            entry = {"step": trainee.step, "loss": round(sum(losses) / len(losses), 4), "step_s": round(step_s, 3)}
            print(f"{entry} {elapsed_s:.0f} s, {step_s * (args.steps - trainee.step):.0f} s left", flush=True)
            with (args.output / "log.jsonl").open("a") as log:
                log.write(json.dumps({**entry, "elapsed_s": round(elapsed_s)}) + "\n")
            losses.clear()
        if trainee.step % args.save_freq == 0 or trainee.step == args.steps:
            trainee.save(args.output / "checkpoints" / f"{trainee.step:06d}")
