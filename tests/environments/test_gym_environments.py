"""PushT and Aloha against LeRobot's own vector environment, and what cannot be served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from env_rollouts import assert_same_episodes, random_actions, run_lerobot, run_ours
from lerobot.envs.configs import AlohaEnv, PushtEnv

from async_delta_inference.client.environments import Environment, EpisodeSpec, make_environments
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport import Observation


def one(env_config: Any) -> Environment:
    (env,) = make_environments(env_config)
    return env


def test_pusht_episodes_are_lerobots() -> None:
    config, actions = PushtEnv(episode_length=40), random_actions(0, 512, 2)
    ours = run_ours(one(config), actions, episodes=3, every=4, video=True)
    theirs = run_lerobot(config, actions, episodes=3)
    assert_same_episodes(ours, theirs)
    assert [len(episode.rewards) for episode in ours] == [40, 40, 40]
    assert not np.array_equal(ours[0].states[0], ours[1].states[0])


def test_pusht_shows_keypoints_instead_of_a_picture() -> None:
    env = one(PushtEnv(obs_type="environment_state_agent_pos"))
    env.reset(env.episode(0, 3), render=False)
    names, observation = env.features.state_names, Observation.empty(env.features)
    env.write_observation(observation)
    raw: Any = env._env.unwrapped.get_obs()  # type: ignore[attr-defined]
    assert names == ("agent_x", "agent_y", *(f"environment_state.{i}" for i in range(16)))
    assert (dict(env.features.images), env.features.robot_dim) == ({}, 2)
    assert np.array_equal(observation.state[:2], raw["agent_pos"].astype(np.float32))
    assert np.array_equal(observation.state[2:], raw["environment_state"].astype(np.float32))
    assert np.array_equal(env.hold_action(), observation.state[:2])
    assert env.video_frame().shape == (384, 384, 3)
    env.close()


def test_pusht_ends_when_solved() -> None:
    env = one(PushtEnv())
    env.reset(env.episode(0, 0))
    simulator: Any = env._env.unwrapped  # type: ignore[attr-defined]
    simulator.goal_pose = np.array([*simulator.block.position, simulator.block.angle])
    result = env.step(env.hold_action())
    assert result.terminated
    assert result.success
    assert not result.truncated
    assert result.reward == 1.0


@pytest.mark.parametrize("length", [pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_aloha_episodes_are_lerobots(length: int) -> None:
    config, actions = AlohaEnv(episode_length=length), random_actions(-0.5, 0.5, 14)
    ours = run_ours(one(config), actions, episodes=2, every=2)
    theirs = run_lerobot(config, actions, episodes=2)
    assert_same_episodes(ours, theirs)


def test_what_pusht_says_of_itself() -> None:
    env = one(PushtEnv(episode_length=12))
    assert (env.task_group, env.task_id, env.fps) == ("pusht", 0, 10)
    assert env.features.state_names == ("agent_x", "agent_y")
    # LeRobot's config says 384 x 384; what it builds renders 96 x 96.
    assert dict(env.features.images) == {"image": (96, 96, 3)}
    assert (env.action_dim, env.max_episode_steps) == (2, 12)
    assert env.episode(2, 1002) == EpisodeSpec("pusht", 0, 2, 1002, None)


def test_holding_still_holds_the_pusht_agent_still() -> None:
    env = one(PushtEnv())
    env.reset(env.episode(0, 3))
    for _ in range(30):
        env.step(np.array([200, 300], np.float32))
    before = env.state()
    for _ in range(10):
        env.step(env.hold_action())
    assert np.abs(env.state() - before).max() < 1


def test_holding_still_holds_the_aloha_arms_still() -> None:
    env = one(AlohaEnv())
    env.reset(env.episode(0, 3), render=False)
    target = env.state()
    target[[1, 8]] += 0.2  # both shoulders
    for _ in range(40):
        env.step(target, render=False)
    for _ in range(20):
        env.step(env.hold_action(), render=False)
    before = env.state()
    for _ in range(20):
        env.step(env.hold_action(), render=False)
    assert np.abs(env.state() - before).max() < 5e-3
    assert np.abs(before - target)[[1, 8]].max() < 0.1
    env.close()


@pytest.mark.parametrize("every", [4])
def test_aloha_renders_on_demand_what_it_would_render_anyway(every: int) -> None:
    """Videos are rendered in another size, by the same camera."""
    config, actions = AlohaEnv(episode_length=6), random_actions(-0.5, 0.5, 14)
    always = run_ours(one(config), actions, episodes=1)
    seldom = run_ours(one(config), actions, episodes=1, every=every)
    filmed = run_ours(one(config), actions, episodes=1, every=every, video=True)
    assert_same_episodes(seldom, always)
    assert_same_episodes(filmed, always)


def test_use_before_reset_and_after_close() -> None:
    env = one(PushtEnv())
    observation = Observation.empty(env.features)
    with pytest.raises(EpisodeError, match="never reset"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(EpisodeError, match="never reset"):
        env.write_observation(observation)
    env.reset(env.episode(0, 1))
    first = env.state()
    env.close()
    env.close()
    with pytest.raises(EpisodeError, match="never reset"):
        env.video_frame()
    env.reset(env.episode(0, 1))
    assert np.array_equal(env.state(), first)


def test_frames_not_rendered_cannot_be_had() -> None:
    env = one(PushtEnv())
    env.reset(env.episode(0, 1), render=False)
    with pytest.raises(EpisodeError, match="told not to render"):
        env.write_observation(Observation.empty(env.features))
    env.step(np.zeros(2, np.float32), render=True)
    env.write_observation(Observation.empty(env.features))


def test_a_failing_simulator_is_an_episode_error() -> None:
    env = one(PushtEnv())
    env.reset(env.episode(0, 1))
    with pytest.raises(EpisodeError, match="pusht/0 failed in step"):
        env.step(np.zeros(5, np.float32))


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (lambda: PushtEnv(obs_type="pixels"), "obs_type=pixels_agent_pos"),
        (lambda: PushtEnv(task="PushT-v9"), "PushT-v9"),
        (lambda: AlohaEnv(obs_type="pixels"), "pixels"),
    ],
)
def test_what_cannot_be_served_says_what_is_missing(config: Any, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        make_environments(config())
