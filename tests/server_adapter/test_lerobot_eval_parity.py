"""`LeRobotPolicy` held to lerobot-eval: the same episodes of PushT, bit for bit, policy type by policy type.

The table of docs/compatibility.md holds what is tested here. The policies are small and random. Equal actions from the
second inference on also mean equal observations: the policy computes them from what it sees.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.envs.configs import PushtEnv
from numpy.typing import NDArray
from pusht_policies import KINDS, build_for_pusht, pusht_for, skip_without_package

from async_delta_inference.client import EpisodeResult, SimClient, SimClientConfig
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import serve

EPISODES, STEPS, SEED = 3, 22, 1000

Recorded = list[tuple[NDArray[np.float32], NDArray[np.float64]]]
"""Actions (T, A) and rewards (T,) of each episode."""


@pytest.fixture(scope="module")
def served() -> LeRobotPolicy:
    return LeRobotPolicy()


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    skip_without_package(request.param)
    return str(request.param)


def test_episodes_are_lerobot_evals(kind: str, served: LeRobotPolicy, tmp_path: Path, runtime_folder: Path) -> None:
    checkpoint = build_for_pusht(kind, tmp_path / "policy")
    env_config = pusht_for(kind, STEPS)
    theirs = rollouts(checkpoint, env_config)
    for where in ("inproc://parity", "shm://parity", "grpc://127.0.0.1:0"):
        assert_same(evaluated(served, checkpoint, where, tmp_path, env=env_config), theirs)
    assert len(theirs[0][0]) == STEPS


def test_mixed_precision_is_lerobot_evals(served: LeRobotPolicy, tmp_path: Path) -> None:
    """On the CPU; of a policy whose actions are float32 all the same, since lerobot-eval fails with bfloat16."""
    skip_without_package("diffusion")
    env_config = pusht_for("diffusion", STEPS)
    recorded = []
    for use_amp in (True, False):
        checkpoint = build_for_pusht("diffusion", tmp_path / f"{use_amp}", use_amp=use_amp)
        recorded.append(rollouts(checkpoint, env_config))
        if use_amp:
            assert_same(evaluated(served, checkpoint, "inproc://amp", tmp_path, env=env_config), recorded[0])
    assert recorded[0][0][0].tobytes() != recorded[1][0][0].tobytes()


def test_cameras_that_are_filled_in_and_a_state_of_another_length_are_lerobot_evals(
    served: LeRobotPolicy, tmp_path: Path
) -> None:
    """SmolVLA pads both."""
    skip_without_package("smolvla")
    checkpoint = build_for_pusht("smolvla", tmp_path / "policy", empty_cameras=1)
    config = json.loads((checkpoint / "config.json").read_text())
    assert len(config["input_features"]) == 3
    config["input_features"]["observation.state"]["shape"] = [6]
    (checkpoint / "config.json").write_text(json.dumps(config))
    env_config = pusht_for("smolvla", STEPS)
    theirs = rollouts(checkpoint, env_config)
    assert_same(evaluated(served, checkpoint, "inproc://tolerant", tmp_path, env=env_config), theirs)


def evaluated(served: LeRobotPolicy, checkpoint: Path, where: str, folder: Path, **flags: Any) -> list[EpisodeResult]:
    """In parity mode, with lerobot-eval's one stream of noise. gRPC is our own protocol, which carries a history."""
    with serve(served, where) as server:
        config = SimClientConfig(
            pretrained_name_or_path=str(checkpoint),
            n_episodes=EPISODES,
            server_address=server.uris[0],
            output_dir=folder / where.partition(":")[0],
            progress=False,
            clock="simulated",
            inference_delay="0",
            chunk_size_threshold=0.0,
            aggregate_fn_name="latest_only",
            noise="stream",
            **flags,
        )
        return SimClient(config).run().episodes


def assert_same(ours: list[EpisodeResult], theirs: Recorded) -> None:
    assert len(ours) == len(theirs)
    for episode, (actions, rewards) in zip(ours, theirs, strict=True):
        assert episode.actions.tobytes() == actions.tobytes()
        assert episode.rewards.tobytes() == rewards.tobytes()


def rollouts(checkpoint: Path, env_config: PushtEnv) -> Recorded:
    """The episodes of lerobot-eval's own functions, called as its command calls them."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout
    from lerobot.utils.random_utils import set_seed

    config: Any = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    set_seed(SEED)
    with contextlib.redirect_stdout(io.StringIO()):
        (tasks,) = make_env(env_config, n_envs=1).values()
    (vector,) = tasks.values()
    policy = make_policy(cfg=config, env_cfg=env_config)
    policy.eval()
    processors = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
        },
    )
    # XVLA brings processors for LIBERO to every environment, and fails with them in any other.
    is_xvla = config.type == "xvla"
    env_processors = env_config.get_env_processors() if is_xvla else make_env_pre_post_processors(env_config, config)
    recorded = []
    with torch.no_grad(), torch.autocast("cpu") if config.use_amp else contextlib.nullcontext():
        for episode in range(EPISODES):
            result = rollout(vector, policy, *env_processors, *processors, seeds=[SEED + episode])
            recorded.append((result["action"].numpy()[0], result["reward"].numpy()[0]))
    vector.close()
    return recorded
