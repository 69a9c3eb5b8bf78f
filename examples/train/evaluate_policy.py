"""Measures a checkpoint's success rate in this process, without a server and without delay.

For watching a training run. The figures that count come from `async-delta-eval`, through the server.
Cameras render only when the policy looks, which changes no image it sees and makes an episode five times faster.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from libero_setup import CameraGate, make_libero_env, to_policy_observation
from numpy.typing import NDArray
from torch import Tensor

from async_delta_inference.client.record.statistics import success_interval

BASE_SEED = 1000
LIBERO_MAX_STEPS = 280

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode."""

    init_state: int
    is_success: bool
    n_steps: int
    duration_s: float


class ChunkPolicy:
    """A checkpoint as PolicyServer runs it: preprocess, predict a chunk, postprocess each action."""

    def __init__(self, checkpoint: Path) -> None:
        """Loads the policy and its processors."""
        from lerobot.policies import make_pre_post_processors
        from lerobot.policies.act.modeling_act import ACTPolicy

        self.policy = ACTPolicy.from_pretrained(checkpoint).to("cpu")
        overrides = {"device_processor": {"device": "cpu"}}
        self._preprocess, self._postprocess = make_pre_post_processors(
            self.policy.config,
            pretrained_path=str(checkpoint),
            preprocessor_overrides=overrides,
            postprocessor_overrides=overrides,
        )

    def predict(self, observation: Observation) -> NDArray[np.float32]:
        """Predicts the chunk for a batched observation. Returns float32 (chunk_size, action_dim)."""
        with torch.inference_mode():
            chunk = self.policy.predict_action_chunk(self._preprocess(dict(observation)))
            return np.concatenate([self._postprocess(chunk[:, i]).numpy() for i in range(chunk.shape[1])])


@dataclass(frozen=True)
class Breakage:
    """Something broken on purpose, to see whether the success rate notices.

    Attributes:
        observe: applied to what the policy sees.
        act: applied to the chunk, float32 (n, action_dim).
    """

    observe: Callable[[Observation], Observation] = lambda observation: observation
    act: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda chunk: chunk


def _each_image(observation: Observation, change: Callable[[Tensor], Tensor]) -> Observation:
    return {
        name: change(value) if name.startswith("observation.images.") else value for name, value in observation.items()
    }


def _swap_state(observation: Observation) -> Observation:
    order = [3, 4, 5, 0, 1, 2, 6, 7]  # Rotation before position.
    return {**observation, "observation.state": observation["observation.state"][:, order]}


BREAKAGES = {
    "none": Breakage(),
    "images-not-rotated": Breakage(observe=lambda seen: _each_image(seen, lambda image: image.flip(2, 3))),
    "images-black": Breakage(observe=lambda seen: _each_image(seen, torch.zeros_like)),
    "state-order-swapped": Breakage(observe=_swap_state),
    "actions-shifted-by-1": Breakage(act=lambda chunk: np.roll(chunk, 1, axis=0)),
    "actions-shifted-by-10": Breakage(act=lambda chunk: np.roll(chunk, 10, axis=0)),
    "halves-out-of-order": Breakage(act=lambda chunk: np.roll(chunk, len(chunk) // 2, axis=0)),
}


def run_libero_episode(
    env: Any, gate: CameraGate, policy: ChunkPolicy, init_state: int, execute_steps: int, breakage: Breakage
) -> EpisodeResult:
    """Runs one episode as lerobot-eval does, asking for a new chunk every `execute_steps` steps."""
    started_s = time.monotonic()
    env.init_state_id = init_state
    gate.attach()
    gate.is_open = True
    observation, _ = env.reset(seed=BASE_SEED + init_state)
    gate.attach()
    is_success, step = False, 0
    while step < LIBERO_MAX_STEPS and not is_success:
        seen = breakage.observe(to_policy_observation(observation))
        chunk = breakage.act(policy.predict(seen)[:execute_steps])
        for i, action in enumerate(chunk[: LIBERO_MAX_STEPS - step]):
            gate.is_open = i == len(chunk) - 1
            observation, _, is_done, _, info = env.step(action)
            step += 1
            is_success = bool(info["is_success"])
            if is_done:
                break
    return EpisodeResult(init_state, is_success, step, round(time.monotonic() - started_s, 1))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--task-id", type=int, default=0)
    parser.add_argument("--first-init-state", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--execute-steps", type=int, default=50, help="actions executed of each chunk")
    parser.add_argument("--image-size-px", type=int, default=128)
    parser.add_argument("--breakage", choices=list(BREAKAGES), default="none", help="break something on purpose")
    parser.add_argument("--soft-reset", action="store_true", help="faster; images may differ a little")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    return parser.parse_args()


def main() -> None:
    """Evaluates and prints the rate with its interval."""
    args = parse_args()
    policy = ChunkPolicy(args.checkpoint)
    env = make_libero_env(args.task_id, args.image_size_px, hard_reset=not args.soft_reset)
    env._ensure_env()
    gate = CameraGate(env)
    results = []
    for init_state in range(args.first_init_state, args.first_init_state + args.episodes):
        breakage = BREAKAGES[args.breakage]
        results.append(run_libero_episode(env, gate, policy, init_state, args.execute_steps, breakage))
        print(results[-1], flush=True)
    n_successes = sum(result.is_success for result in results)
    low, high = success_interval([result.is_success for result in results])
    print(f"success {n_successes}/{len(results)}, 95 % interval {low:.2f} to {high:.2f}")
    if args.output:
        summary = {"n_successes": n_successes, "n_episodes": len(results), "interval": [low, high]}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**summary, "episodes": [asdict(r) for r in results]}, indent=2))


if __name__ == "__main__":
    main()
