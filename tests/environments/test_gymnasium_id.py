"""``--env.type=gymnasium``."""

from __future__ import annotations

from dataclasses import dataclass

import draccus
import numpy as np
import pytest
from env_rollouts import assert_same_episodes, random_actions, run_lerobot, run_ours
from lerobot.envs.configs import EnvConfig, PushtEnv

from async_delta_inference.client.environments import make_environments
from async_delta_inference.client.environments.gymnasium_id import GymnasiumEnv
from async_delta_inference.errors import ConfigError


@dataclass
class Flags:
    env: EnvConfig


def test_a_vector_becomes_the_state_and_what_is_rendered_the_camera() -> None:
    (env,) = make_environments(GymnasiumEnv(task="Pendulum-v1", episode_length=10))
    assert (env.task_group, env.action_dim, env.max_episode_steps) == ("Pendulum-v1", 1, 10)
    assert env.features.state_dim == 3
    assert dict(env.features.images) == {"image": (500, 500, 3)}
    ours = run_ours(env, random_actions(-2, 2, 1), episodes=2, every=3)
    env.close()
    theirs = run_lerobot(GymnasiumEnv(task="Pendulum-v1", episode_length=10), random_actions(-2, 2, 1), episodes=2)
    assert_same_episodes(ours, theirs)
    assert len(ours[0].rewards) == 10


@pytest.mark.parametrize("task", ["gym_pusht/PushT-v0", "gym_pusht:gym_pusht/PushT-v0"])
def test_lerobots_layout_is_taken_as_it_is(task: str) -> None:
    (env,) = make_environments(GymnasiumEnv(task=task, make_kwargs={"obs_type": "pixels_agent_pos"}))
    (known,) = make_environments(PushtEnv())
    env.reset(env.episode(0, 5))
    known.reset(known.episode(0, 5))
    assert dict(env.features.images) == dict(known.features.images)
    assert np.array_equal(env.state(), known.state())
    assert env.task_group == "gym_pusht_PushT-v0"


def test_it_is_a_choice_of_the_command_line() -> None:
    arguments = ["type=gymnasium", "task=Pendulum-v1", "make_kwargs={g: 9.0}", "episode_length=7"]
    config = draccus.parse(Flags, args=[f"--env.{argument}" for argument in arguments]).env
    assert isinstance(config, GymnasiumEnv)
    assert config.gym_kwargs == {"render_mode": "rgb_array", "max_episode_steps": 7, "g": 9.0}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GymnasiumEnv(), "--env.task"),
        (GymnasiumEnv(task="NoSuch-v3"), "NoSuch"),
        (GymnasiumEnv(task="no_such_package/Thing-v0"), "no_such_package"),
        (GymnasiumEnv(task="CartPole-v1"), "needed is a vector"),
        (GymnasiumEnv(task="Blackjack-v1"), "observes a tuple"),
    ],
)
def test_what_cannot_be_served_says_why(config: GymnasiumEnv, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_environments(config)
