"""Records demonstrations of one libero_object task with the scripted expert.

Episode i starts from init state `i mod n_init_states`; the held-out ones (40 to 49 unless told otherwise) are never
touched. In every second episode the object is moved inside the square that the task's own BDDL file allows, because the
init states that come with the suite put it on exactly the same spot and a policy would need no eyes to find it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from demo_dataset import IS_RENDERED, Episode, dataset_features, image_hwc_uint8, write_demonstrations
from libero_expert import Disturbance, ExpertConfig, PickPlaceExpert
from libero_setup import CONTROL_FREQUENCY_HZ, CameraGate, make_libero_env, to_policy_observation
from numpy.typing import NDArray

SETTLING_STEPS = 10
MAX_STEPS = 280
IMAGE_KEYS = ("observation.images.image", "observation.images.image2")


class LiberoRecorder:
    """Holds one environment and records episodes in it."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Builds the environment, about 10 to 30 s."""
        self._args = args
        self._env = make_libero_env(args.task_id, args.image_size_px, hard_reset=False)
        self._env._ensure_env()
        self._gate = CameraGate(self._env)
        self._init_states = np.asarray(self._env._init_states)
        inner = self._env._env.env
        self._object_name, self._basket_name = inner.obj_of_interest[:2]

    def record(self, index: int, attempt: int) -> Episode:
        """Records episode `index`. The same index and attempt give the same episode."""
        args = self._args
        rng = np.random.default_rng([args.seed, args.task_id, index, attempt])
        init_state_id = index % args.n_init_states
        # Alternates per round over the init states, so that every one is seen both ways.
        is_moved = (index + index // args.n_init_states) % 2 == 1
        offset_m = rng.uniform(-args.object_offset_m, args.object_offset_m, size=2) if is_moved else np.zeros(2)
        # A third of the episodes start where an evaluation does.
        n_wander_steps = int(rng.integers(1, args.max_wander_steps + 1)) if rng.random() < 2 / 3 else 0
        observation = self._reset(init_state_id, offset_m, is_rendered=n_wander_steps == 0)
        observation = self._wander(observation, rng, n_wander_steps)
        frames, is_success = self._solve(observation, rng)
        details = {"init_state": init_state_id, "object_offset_m": [round(float(v), 4) for v in offset_m]}
        return Episode(frames, is_success, details)

    def _positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        inner = self._env._env.env
        positions = inner.sim.data.body_xpos
        return (
            positions[inner.obj_body_id[self._object_name]].copy(),
            positions[inner.obj_body_id[self._basket_name]].copy(),
        )

    def _reset(self, init_state_id: int, offset_m: NDArray[np.float64], *, is_rendered: bool) -> dict[str, Any]:
        """Resets to an init state with the object moved by `offset_m` (2,), and lets everything settle."""
        inner = self._env._env.env
        state = self._init_states[init_state_id].copy()
        address = inner.sim.model.get_joint_qpos_addr(inner.objects_dict[self._object_name].joints[0])
        state[1 + address[0] : 3 + address[0]] += offset_m  # A flattened state is time, qpos, qvel.
        self._env._init_states = state[None]
        self._gate.attach()
        self._gate.is_open = is_rendered
        observation, _ = self._env.reset(seed=self._args.seed)
        self._gate.attach()
        return observation

    def _wander(self, observation: dict[str, Any], rng: np.random.Generator, n_steps: int) -> dict[str, Any]:
        """Moves the hand away from where it starts, unrecorded: the policy must not rely on one start."""
        action = np.zeros(7, dtype=np.float32)
        action[:3] = rng.uniform(-0.6, 0.6, size=3)
        action[6] = -1.0
        for step in range(n_steps):
            self._gate.is_open = step == n_steps - 1
            observation, *_ = self._env.step(action)
        return observation

    def _solve(self, observation: dict[str, Any], rng: np.random.Generator) -> tuple[list[dict[str, Any]], bool]:
        args = self._args
        expert = PickPlaceExpert(ExpertConfig(grasp_height_m=args.grasp_height_m))
        disturbance = Disturbance(rng, args.noise_std, args.push_probability, args.push_size)
        frames: list[dict[str, Any]] = []
        for step in range(MAX_STEPS):
            is_rendered = step % args.render_every == 0
            action = expert.act(observation["robot_state"]["eef"]["pos"], *self._positions())
            frames.append(self._frame(observation, action, is_rendered))
            self._gate.is_open = (step + 1) % args.render_every == 0
            observation, _, terminated, _, info = self._env.step(disturbance.apply(action))
            if terminated:
                return frames, bool(info["is_success"])
        return frames, False

    def _frame(self, observation: dict[str, Any], action: NDArray[np.float32], is_rendered: bool) -> dict[str, Any]:
        policy_observation = to_policy_observation(observation)
        frame: dict[str, Any] = {key: image_hwc_uint8(policy_observation[key]) for key in IMAGE_KEYS}
        frame["observation.state"] = policy_observation["observation.state"][0].numpy()
        frame[IS_RENDERED] = np.array([is_rendered])
        return {**frame, "action": action, "task": self._env.task_description}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task-id", type=int, default=0, help="task of libero_object; the expert solves 0, 5 and 8")
    parser.add_argument("--output", type=Path, required=True, help="dataset folder; an unfinished one is continued")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size-px", type=int, default=128)
    parser.add_argument("--n-init-states", type=int, default=40, help="train on init states 0 to this, exclusive")
    parser.add_argument("--object-offset-m", type=float, default=0.025, help="largest offset of the object, each axis")
    parser.add_argument("--max-wander-steps", type=int, default=8, help="unrecorded random steps before an episode")
    parser.add_argument("--render-every", type=int, default=3, help="steps between two rendered, trainable frames")
    parser.add_argument("--noise-std", type=float, default=0.1, help="noise on each executed translation")
    parser.add_argument("--push-probability", type=float, default=0.03, help="per step, of a push of 3 to 7 steps")
    parser.add_argument("--push-size", type=float, default=0.5)
    parser.add_argument("--grasp-height-m", type=float, default=0.0, help="hand above the object's centre at grasp")
    return parser.parse_args()


def main() -> None:
    """Records the dataset."""
    args = parse_args()
    shape = (args.image_size_px, args.image_size_px, 3)
    features = dataset_features({"image": shape, "image2": shape}, state_dim=8, action_dim=7)
    recorder = LiberoRecorder(args)
    write_demonstrations(args.output, CONTROL_FREQUENCY_HZ, features, args.episodes, recorder.record)


if __name__ == "__main__":
    main()
