"""Parity with lerobot-eval: the same episodes, bit for bit, through lerobot's PolicyServer and lerobot's `rollout`.

With a random ACT, which draws no noise. Equal actions from the second chunk on also mean equal frames: the policy
computes them from what it sees.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.envs.configs import AlohaEnv, LiberoEnv, MetaworldEnv, PushtEnv
from numpy.typing import NDArray
from peer_process import ProcessPeer
from random_act import build_random_act

from async_delta_inference.client import SimClient, SimClientConfig
from async_delta_inference.client.environments import make_environments

LONG = (pytest.mark.slow, pytest.mark.timeout(3600))
LEROBOTS_CAMERA = {"observation.image": "observation.images.image"}


def libero(task: str, task_id: int, length: int | None) -> LiberoEnv:
    return LiberoEnv(task=task, task_ids=[task_id], episode_length=length, observation_height=96, observation_width=96)


class ShortMetaworld(MetaworldEnv):
    """MetaWorld whose episodes end early: LeRobot fixes their length at 500."""

    type = "metaworld"

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        groups = super().create_envs(n_envs, use_async_envs)
        for vectors in groups.values():
            for vector in vectors.values():
                for env in vector.envs:
                    env._max_episode_steps = self.episode_length
        return groups


@pytest.mark.parametrize(
    ("make_config", "episodes", "chunk_size"),
    [
        pytest.param(lambda: PushtEnv(episode_length=45), 3, 20, id="pusht"),
        pytest.param(lambda: libero("libero_object", 0, 9), 2, 4, id="libero_object"),
        pytest.param(lambda: libero("libero_goal", 3, 9), 2, 4, id="libero_goal"),
        pytest.param(lambda: ShortMetaworld(task="push-v3", episode_length=5), 2, 3, id="metaworld"),
        pytest.param(lambda: AlohaEnv(episode_length=4), 2, 2, id="aloha"),
        pytest.param(lambda: PushtEnv(), 5, 50, id="pusht-long", marks=LONG),
        pytest.param(lambda: libero("libero_spatial", 1, None), 2, 50, id="libero_spatial-long", marks=LONG),
        pytest.param(lambda: libero("libero_10", 8, 120), 3, 25, id="libero_10-long", marks=LONG),
        pytest.param(lambda: MetaworldEnv(task="reach-v3"), 2, 50, id="metaworld-long", marks=LONG),
        pytest.param(lambda: AlohaEnv(episode_length=100), 2, 25, id="aloha-long", marks=LONG),
    ],
)
def test_episodes_are_lerobot_evals(
    make_config: Callable[[], Any], episodes: int, chunk_size: int, policy_server: ProcessPeer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_for(make_config(), chunk_size, tmp_path / "act")
    config = SimClientConfig(
        env=make_config(),
        policy_type="act",
        pretrained_name_or_path=str(checkpoint),
        actions_per_chunk=chunk_size,
        n_episodes=episodes,
        server_address=policy_server.uri,
        output_dir=tmp_path / "out",
        progress=False,
        clock="simulated",
        inference_delay="0",
        chunk_size_threshold=0.0,
        aggregate_fn_name="latest_only",
    )
    ours = SimClient(config).run().episodes
    theirs = rollouts(make_config(), checkpoint, episodes)
    assert len(ours) == episodes
    for episode, (actions, rewards, successes, states) in zip(ours, theirs, strict=True):
        assert episode.actions.tobytes() == actions.tobytes()
        assert episode.rewards.tobytes() == rewards.tobytes()
        assert episode.states.tobytes() == states.tobytes()
        assert episode.success == successes.any()
        assert len(episode.chunks) > 1


def checkpoint_for(env_config: Any, chunk_size: int, folder: Path) -> Path:
    """A random ACT that sees images in the environment's own size: PolicyServer would resize them, lerobot-eval not."""
    environment = make_environments(env_config)[0]
    features = environment.features
    build_random_act(folder, features, environment.action_dim, chunk_size=chunk_size)
    environment.close()
    saved = json.loads((folder / "config.json").read_text())
    for name, (height, width, channels) in features.images.items():
        saved["input_features"][f"observation.images.{name}"]["shape"] = [channels, height, width]
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


Recorded = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float32]]


def rollouts(env_config: Any, checkpoint: Path, episodes: int) -> list[Recorded]:
    """Actions (T, A), rewards (T,), successes (T,) and states (T, S) of lerobot's own rollouts, seeded as lerobot-eval
    seeds them.
    """
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.scripts.lerobot_eval import rollout

    policy = ACTPolicy.from_pretrained(checkpoint)
    policy.eval()
    preprocessor, postprocessor = make_pre_post_processors(
        policy.config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"rename_observations_processor": {"rename_map": LEROBOTS_CAMERA}},
    )
    env_preprocessor, env_postprocessor = make_env_pre_post_processors(env_config, policy.config)
    with contextlib.redirect_stdout(io.StringIO()):
        (tasks,) = make_env(env_config, n_envs=1).values()
    (vector,) = tasks.values()
    recorded = []
    states: list[NDArray[np.float32]] = []

    def keep_state(observation: dict[str, Any]) -> dict[str, Any]:
        processed: dict[str, Any] = env_preprocessor(observation)
        states.append(processed["observation.state"].numpy()[0].copy())
        return processed

    for episode in range(episodes):
        states.clear()
        result = rollout(
            vector,
            policy,
            keep_state,
            env_postprocessor,
            preprocessor,
            postprocessor,
            seeds=[1000 + episode],
        )
        actions, rewards, successes = (result[key].numpy()[0] for key in ("action", "reward", "success"))
        recorded.append((actions, rewards, successes, np.array(states)))
    vector.close()
    return recorded
