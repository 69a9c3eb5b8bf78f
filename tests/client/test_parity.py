"""Parity with lerobot-eval: the same episodes, bit for bit, through lerobot's PolicyServer and lerobot's `rollout`.

With a random ACT, which draws no noise. Equal actions from the second chunk on also mean equal frames: the policy
computes them from what it sees.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.envs.configs import AlohaEnv, LiberoEnv, MetaworldEnv, PushtEnv
from numpy.typing import NDArray
from random_act import build_random_act

from async_delta_inference.client import EpisodeResult, SimClient, SimClientConfig
from async_delta_inference.client.environments import make_environments
from async_delta_inference.transport.testing import ServedPeer

LONG = (pytest.mark.slow, pytest.mark.timeout(3600))
LEROBOTS_CAMERA = {"observation.image": "observation.images.image"}


def libero(task: str, task_id: int, length: int | None, size_px: int = 96) -> LiberoEnv:
    return LiberoEnv(
        task=task,
        task_ids=[task_id],
        episode_length=length,
        observation_height=size_px,
        observation_width=size_px,
    )


@dataclass(frozen=True)
class Recorded:
    """An episode of lerobot's rollout: (T, A), (T,), (T,), (T, S)."""

    actions: NDArray[np.float32]
    rewards: NDArray[np.float64]
    successes: NDArray[np.bool_]
    states: NDArray[np.float32]


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
        # A drawer is open in the beginning: LIBERO remembers how often it has been reset.
        pytest.param(lambda: libero("libero_spatial", 4, 9), 2, 4, id="libero_spatial"),
        pytest.param(lambda: ShortMetaworld(task="push-v3", episode_length=5), 2, 3, id="metaworld"),
        pytest.param(lambda: AlohaEnv(episode_length=4), 2, 2, id="aloha"),
        pytest.param(lambda: PushtEnv(), 5, 50, id="pusht-long", marks=LONG),
        pytest.param(lambda: libero("libero_10", 8, 120), 3, 25, id="libero_10-long", marks=LONG),
        pytest.param(lambda: libero("libero_spatial", 1, None, 256), 3, 50, id="libero_spatial-full", marks=LONG),
        pytest.param(lambda: MetaworldEnv(task="reach-v3"), 2, 50, id="metaworld-long", marks=LONG),
        pytest.param(lambda: AlohaEnv(episode_length=100), 2, 25, id="aloha-long", marks=LONG),
    ],
)
def test_episodes_are_lerobot_evals(
    make_config: Callable[[], Any], episodes: int, chunk_size: int, policy_server: ServedPeer, tmp_path: Path
) -> None:
    ours, theirs = run_both(make_config, episodes, chunk_size, policy_server, tmp_path)
    assert_same(ours, theirs)


def run_both(
    make_config: Callable[[], Any], episodes: int, chunk_size: int, server: ServedPeer, folder: Path
) -> tuple[list[EpisodeResult], list[Recorded]]:
    """The same episodes through the whole pipeline in parity mode and through lerobot's rollout."""
    checkpoint = checkpoint_for(make_config(), chunk_size, folder / "act")
    config = SimClientConfig(
        env=make_config(),
        policy_type="act",
        pretrained_name_or_path=str(checkpoint),
        actions_per_chunk=chunk_size,
        n_episodes=episodes,
        server_address=server.uri,
        output_dir=folder / "out",
        progress=False,
        clock="simulated",
        inference_delay="0",
        chunk_size_threshold=0.0,
        aggregate_fn_name="latest_only",
    )
    return SimClient(config).run().episodes, rollouts(make_config(), checkpoint, episodes)


def assert_same(ours: list[EpisodeResult], theirs: list[Recorded]) -> None:
    assert len(ours) == len(theirs)
    for episode, recorded in zip(ours, theirs, strict=True):
        assert episode.actions.tobytes() == recorded.actions.tobytes()
        assert episode.rewards.tobytes() == recorded.rewards.tobytes()
        assert episode.states.tobytes() == recorded.states.tobytes()
        assert episode.success == recorded.successes.any()
        assert len(episode.chunks) > 1


def checkpoint_for(env_config: Any, chunk_size: int, folder: Path) -> Path:
    """A random ACT that sees images in the environment's own size: PolicyServer would resize them, lerobot-eval not."""
    environment = make_environments(env_config)[0]
    build_random_act(folder, environment.features, environment.action_dim, image_size=None, chunk_size=chunk_size)
    environment.close()
    return folder


def rollouts(env_config: Any, checkpoint: Path, episodes: int) -> list[Recorded]:
    """Lerobot's own rollouts, seeded as lerobot-eval seeds them."""
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
        recorded.append(Recorded(actions, rewards, successes, np.array(states)))
    vector.close()
    return recorded
