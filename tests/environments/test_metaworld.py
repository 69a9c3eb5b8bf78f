"""MetaWorld against LeRobot's vector environment, rendered on demand against rendered always."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from env_rollouts import ActionSource, Episode, assert_same_episodes, random_actions, run_lerobot, run_ours
from lerobot.envs.configs import MetaworldEnv
from numpy.typing import NDArray

from async_delta_inference.client.environments import Environment, make_environments
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Observation


@pytest.fixture(scope="module")
def reach() -> Iterator[Environment]:
    (env,) = make_environments(MetaworldEnv(task="reach-v3"))
    yield env
    env.close()


def expert_actions(env: Environment, episodes: int) -> ActionSource:
    """What MetaWorld's scripted expert does in each episode, recorded once so that both sides can run it."""
    from lerobot.envs.metaworld import TASK_POLICY_MAPPING

    recorded: dict[tuple[int, int], NDArray[np.float32]] = {}
    for episode in range(episodes):
        env.reset(env.episode(0, 1000 + episode), render=False)
        simulator: Any = env._env.unwrapped._env  # type: ignore[attr-defined]
        expert = TASK_POLICY_MAPPING["reach-v3"]()
        seen = simulator._get_obs()
        for step in range(100):
            action = np.clip(expert.get_action(seen), -1, 1).astype(np.float32)
            recorded[episode, step] = action
            if env.step(action, render=False).terminated:
                break
            seen = simulator._last_stable_obs
    return lambda episode, step: recorded[episode, step]


def assert_solved(episodes: list[Episode]) -> None:
    assert all(episode.terminated and episode.successes[-1] for episode in episodes)
    assert [len(episode.rewards) for episode in episodes] == [47, 53, 50][: len(episodes)]


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("episodes", [1, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_solved_episodes_are_lerobots(reach: Environment, episodes: int) -> None:
    """LeRobot resets within the step that solves a task, which draws random numbers: later episodes show it."""
    actions = expert_actions(reach, episodes)
    ours = run_ours(reach, actions, episodes=episodes, every=7)
    assert_solved(ours)
    assert_same_episodes(ours, run_lerobot(MetaworldEnv(task="reach-v3"), actions, episodes=episodes))


def test_unsolved_episodes_are_lerobots() -> None:
    config, actions = MetaworldEnv(task="push-v3"), random_actions(-1, 1, 4)
    (env,) = make_environments(config)
    ours = run_ours(env, actions, episodes=2, every=3, max_steps=6)
    env.close()
    assert_same_episodes(ours, run_lerobot(config, actions, episodes=2, max_steps=6))


@pytest.mark.filterwarnings("ignore:Constant")
def test_rendering_on_demand_changes_nothing(reach: Environment) -> None:
    actions = expert_actions(reach, 2)
    always = run_ours(reach, actions, episodes=2, every=1, max_steps=10)
    seldom = run_ours(reach, actions, episodes=2, every=8, max_steps=10)
    assert_same_episodes(seldom, always)
    assert_same_episodes(run_ours(reach, actions, episodes=1, every=8, max_steps=10, video=True), always[:1])


@pytest.mark.filterwarnings("ignore:Constant")
def test_the_frame_of_a_solved_task_is_not_the_next_episodes(reach: Environment) -> None:
    actions = expert_actions(reach, 1)
    reach.reset(reach.episode(0, 1000))
    first = reach.video_frame()
    for step in range(47):
        result = reach.step(actions(0, step), render=False)
        if step == 45:
            before = reach.video_frame()
    assert result.success
    last = reach.video_frame().astype(int)
    assert np.abs(last - before).mean() < np.abs(last - first).mean() / 2


def test_what_it_says_of_itself(reach: Environment) -> None:
    assert (reach.task_group, reach.task_id, reach.fps) == ("reach-v3", 0, 80)
    assert (reach.action_dim, reach.max_episode_steps) == (4, 500)
    assert dict(reach.features.images) == {"image": (480, 480, 3)}
    assert reach.features.state_dim == 4
    assert reach.task_description


def test_holding_still_keeps_the_gripper_as_it_was(reach: Environment) -> None:
    reach.reset(reach.episode(0, 1), render=False)
    assert reach.hold_action().tolist() == [0, 0, 0, -1]
    for _ in range(10):
        reach.step(np.array([0.5, 0, 0, 0.75], np.float32), render=False)
    assert reach.hold_action().tolist() == [0, 0, 0, 0.75]
    for _ in range(20):
        reach.step(reach.hold_action(), render=False)
    before = reach.state()
    for _ in range(10):
        reach.step(reach.hold_action(), render=False)
    assert np.abs(reach.state() - before).max() < 5e-3


def test_a_closed_environment_is_built_anew(reach: Environment) -> None:
    reach.reset(reach.episode(0, 7), render=False)
    state = reach.state()
    reach.close()
    reach.reset(reach.episode(0, 7))
    assert np.array_equal(reach.state(), state)
    reach.write_observation(Observation.empty(reach.features))


def test_groups_and_lists_of_tasks() -> None:
    from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS

    for group in ("easy", "medium", "hard", "very_hard"):
        tasks = make_environments(MetaworldEnv(task=group))
        assert [(t.task_group, t.task_id) for t in tasks] == [
            (group, i) for i in range(len(DIFFICULTY_TO_TASKS[group]))
        ]
    assert [t.task_group for t in make_environments(MetaworldEnv(task="reach-v3,push-v3"))] == ["reach-v3", "push-v3"]


def test_an_unknown_task_is_refused_with_close_names() -> None:
    with pytest.raises(ConfigError, match=r"no task 'push-v2'.*easy.*push-v3"):
        make_environments(MetaworldEnv(task="push-v2"))
