"""Records demonstrations of one MetaWorld task with the expert that comes with the package.

LeRobot's `MetaworldEnv` always renders 480x480. The dataset holds the image, cut and shrunk by the same processor step
that the exported policy carries, so training and evaluation see the same pixels, through PolicyServer and through
lerobot-eval.
Episode i uses seed `first_seed + i`; the evaluations here use 1000 to 1039, which no demonstration may.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_dataset import IS_RENDERED, Episode, dataset_features, image_hwc_uint8, write_demonstrations
from libero_expert import Disturbance
from numpy.typing import NDArray

FPS = 80
IMAGE_KEY = "observation.images.image"


class MetaworldRecorder:
    """Holds one environment and records episodes in it."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Builds the environment, about 5 s."""
        os.environ.setdefault("MUJOCO_GL", "egl")
        from lerobot.envs.metaworld import MetaworldEnv
        from lerobot.processor import ImageCropResizeProcessorStep

        self._args = args
        self._env = MetaworldEnv(args.task, obs_type="pixels_agent_pos")
        self._resize = ImageCropResizeProcessorStep(
            crop_params_dict={IMAGE_KEY: tuple(args.crop_px)} if args.crop_px else None,
            resize_size=(args.image_size_px, args.image_size_px),
        )
        self._image: NDArray[np.uint8]

    def record(self, index: int, attempt: int) -> Episode:
        """Records episode `index`. The same index and attempt give the same episode.

        The expert solves it once with closed eyes: a step costs 2 ms, a picture 100, and a failure is thrown away.
        """
        if not self._solve(index, attempt, is_seen=False).is_success:
            return Episode([], is_success=False)
        return self._solve(index, attempt, is_seen=True)

    def _solve(self, index: int, attempt: int, *, is_seen: bool) -> Episode:
        args = self._args
        seed = args.first_seed + index
        rng = np.random.default_rng([args.seed, seed, attempt])
        disturbance = Disturbance(rng, args.noise_std, args.push_probability, args.push_size)
        # What MetaworldEnv.reset does, without its picture.
        self._env._ensure_env()
        inner = self._env._env
        inner.seed(seed)
        raw, _ = inner.reset(seed=seed)
        n_detour = int(rng.integers(args.detour_steps + 1))
        raw = self._detour(raw, n_detour)
        frames: list[dict[str, Any]] = []
        solved_at: int | None = None
        for step in range(args.max_steps):
            action = self._expert_action(raw)
            if is_seen:
                is_rendered = step % args.render_every == 0
                is_goal_drawn = n_detour + step > 0  # Not in the reset's own picture.
                frames.append(self._frame(raw, action, is_rendered, is_rendered and is_goal_drawn))
            raw, _, _, _, info = inner.step(disturbance.apply(action))
            if info["success"] and solved_at is None:
                solved_at = step
            # A demonstration that ends with success shows neither how to stay there nor how to come back.
            if solved_at is not None and step >= solved_at + args.linger_steps:
                return Episode(frames, True, {"seed": seed})
        return Episode(frames, False, {"seed": seed})

    def _detour(self, raw: NDArray[np.float64], n_steps: int) -> NDArray[np.float64]:
        """Heads for the goal that the reset's picture shows, and returns the observation (39,) there.

        MetaWorld draws two goals: the picture shows the first, the second counts. An evaluation's first chunk is
        computed from that picture, so the policy has to come back from where it leads.
        """
        shown_goal = self._env._env.data.site("goal").xpos.copy()
        for _ in range(n_steps):
            raw = raw.copy()
            raw[-3:] = shown_goal
            raw, _, _, _, info = self._env._env.step(self._expert_action(raw))
            if info["success"]:
                break  # An evaluation would have ended here.
        return raw

    def _expert_action(self, raw: NDArray[np.float64]) -> NDArray[np.float32]:
        action: NDArray[np.float32] = np.clip(self._env.expert_policy.get_action(raw), -1.0, 1.0).astype(np.float32)
        return action

    def _frame(
        self, raw: NDArray[np.float64], action: NDArray[np.float32], is_rendered: bool, is_trainable: bool
    ) -> dict[str, Any]:
        if is_rendered:
            observation = self._env._format_raw_obs(raw)
            image = torch.from_numpy(observation["pixels"]).permute(2, 0, 1)[None].float() / 255.0
            self._image = image_hwc_uint8(self._resize.observation({IMAGE_KEY: image})[IMAGE_KEY])
        return {
            IMAGE_KEY: self._image,
            "observation.state": raw[:4].astype(np.float32),
            IS_RENDERED: np.array([is_trainable]),
            "action": action,
            "task": self._env.task_description,
        }


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--output", type=Path, required=True, help="dataset folder; an unfinished one is continued")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--episodes-per-save", type=int, default=1, help="an interrupted run repeats as many")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--first-seed", type=int, default=0, help="of the environment, for the first episode")
    parser.add_argument("--image-size-px", type=int, default=96)
    parser.add_argument(
        "--crop-px",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"),
        help="part of the 480x480 picture that is kept; reach-v3's goal is a ball of 15 pixels there, and of 3 without",
    )
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--detour-steps", type=int, default=50, help="at most, before the recording, to a wrong goal")
    parser.add_argument("--linger-steps", type=int, default=40, help="recorded after the task is solved")
    parser.add_argument("--render-every", type=int, default=3, help="steps between two rendered, trainable frames")
    parser.add_argument("--noise-std", type=float, default=0.1)
    parser.add_argument("--push-probability", type=float, default=0.03)
    parser.add_argument("--push-size", type=float, default=0.5)
    return parser.parse_args()


def main() -> None:
    """Records the dataset."""
    args = parse_args()
    size = args.image_size_px
    features = dataset_features({"image": (size, size, 3)}, state_dim=4, action_dim=4)
    write_demonstrations(
        args.output,
        FPS,
        features,
        args.episodes,
        MetaworldRecorder(args).record,
        episodes_per_save=args.episodes_per_save,
    )


if __name__ == "__main__":
    main()
