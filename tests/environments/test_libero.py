"""LIBERO against LeRobot's vector environment, rendered on demand against rendered always."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
from env_rollouts import assert_same_episodes, random_actions, run_lerobot, run_ours
from lerobot.envs.configs import LiberoEnv

from async_delta_inference.client.environments import Environment, make_environments
from async_delta_inference.client.environments.observation import LIBERO_STATE_NAMES
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport import Observation

ACTIONS = random_actions(-1, 1, 7)
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
LONG = (pytest.mark.slow, pytest.mark.timeout(3600))


def config(suite: str, task_id: int, length: int | None = None, size_px: int = 96, fps: int = 20) -> LiberoEnv:
    return LiberoEnv(
        task=suite,
        task_ids=[task_id],
        episode_length=length,
        observation_height=size_px,
        observation_width=size_px,
        fps=fps,
    )


def one(*args: Any, **kwargs: Any) -> Environment:
    (env,) = make_environments(config(*args, **kwargs))
    return env


@pytest.fixture(scope="module")
def basket() -> Iterator[Environment]:
    """The one of the cheap tests: libero_object task 0."""
    env = one("libero_object", 0)
    yield env
    env.close()


@pytest.mark.parametrize(
    ("suite", "task_id", "length", "episodes", "fps"),
    [
        # Goal has drawers, whose samplers draw more numbers with every reset; object has none.
        pytest.param("libero_goal", 0, 5, 2, 20, marks=LONG),
        pytest.param("libero_object", 0, 5, 2, 20, marks=LONG),
        pytest.param("libero_spatial", 4, 100, 3, 20, marks=LONG),
        pytest.param("libero_goal", 3, 100, 3, 20, marks=LONG),
        pytest.param("libero_10", 2, 100, 3, 20, marks=LONG),
        # A control period that is no multiple of the simulator's: now and then no frame is sampled in a step.
        pytest.param("libero_object", 5, 60, 2, 30, marks=LONG),
    ],
)
def test_episodes_are_lerobots(suite: str, task_id: int, length: int, episodes: int, fps: int) -> None:
    asked = config(suite, task_id, length, fps=fps)
    (env,) = make_environments(asked)
    ours = run_ours(env, ACTIONS, episodes=episodes, every=4)
    env.close()
    theirs = run_lerobot(asked, ACTIONS, episodes=episodes, task_id=task_id)
    assert_same_episodes(ours, theirs)
    assert [len(episode.rewards) for episode in ours] == [length] * episodes
    assert [episode.init_state_id for episode in ours] == list(range(episodes))


@pytest.mark.parametrize("length", [8, pytest.param(280, marks=LONG)])
def test_rendering_on_demand_changes_nothing(basket: Environment, length: int) -> None:
    """Whole episodes: states, rewards and the frames that were rendered, videos or not."""
    always = run_ours(basket, ACTIONS, episodes=2, every=1, max_steps=length)
    seldom = run_ours(basket, ACTIONS, episodes=2, every=5, max_steps=length)
    filmed = run_ours(basket, ACTIONS, episodes=1, every=5, max_steps=min(length, 30), video=True)
    assert_same_episodes(seldom, always)
    assert [len(episode.images) for episode in always] == [length + 1] * 2
    for left, right in zip(filmed[0].states, always[0].states, strict=False):
        assert left.tobytes() == right.tobytes()


def test_video_frames_are_upright_and_current(basket: Environment) -> None:
    basket.reset(basket.episode(0, 0))
    shown = Observation.empty(basket.features)
    basket.write_observation(shown)
    assert np.array_equal(basket.video_frame(), shown.images["image"])
    for step in range(20):
        basket.step(ACTIONS(0, step), render=False)
    unseen = basket.video_frame()
    assert np.abs(unseen.astype(int) - shown.images["image"]).mean() > 1
    assert np.array_equal(basket.video_frame(), unseen)


def test_frames_not_rendered_cannot_be_had(basket: Environment) -> None:
    basket.reset(basket.episode(0, 0), render=False)
    with pytest.raises(EpisodeError, match="told not to render"):
        basket.write_observation(Observation.empty(basket.features))
    basket.step(ACTIONS(0, 0), render=True)
    basket.write_observation(Observation.empty(basket.features))


def test_frames_go_into_the_given_memory(basket: Environment) -> None:
    basket.reset(basket.episode(0, 0))
    observation = Observation.empty(basket.features)
    images = dict(observation.images)
    for image in images.values():
        image[:] = 0
    basket.write_observation(observation)
    assert all(observation.images[camera] is image and image.any() for camera, image in images.items())
    assert observation.state.tobytes() == basket.state().tobytes()


def test_what_it_says_of_itself(basket: Environment) -> None:
    assert (basket.task_group, basket.task_id, basket.fps) == ("libero_object", 0, 20)
    assert (basket.action_dim, basket.max_episode_steps) == (7, 280)
    assert basket.features.state_names == LIBERO_STATE_NAMES
    assert dict(basket.features.images) == {"image": (96, 96, 3), "image2": (96, 96, 3)}
    assert basket.task_description == "pick up the alphabet soup and place it in the basket"


def test_holding_still_keeps_the_arm_and_the_gripper_as_they_were(basket: Environment) -> None:
    basket.reset(basket.episode(0, 0), render=False)
    assert basket.hold_action().tolist() == [0] * 6 + [-1]
    for _ in range(10):
        basket.step(np.array([0.3, 0, -0.3, 0, 0, 0, 0.5], np.float32), render=False)
    assert basket.hold_action().tolist() == [0] * 6 + [0.5]
    for _ in range(20):
        basket.step(basket.hold_action(), render=False)
    before = basket.state()
    for _ in range(10):
        basket.step(basket.hold_action(), render=False)
    assert np.abs(basket.state() - before)[:6].max() < 5e-3


def test_episodes_start_from_the_recorded_states_in_turn(basket: Environment) -> None:
    assert [basket.episode(index, 1000 + index).init_state_id for index in (0, 1, 49, 50)] == [0, 1, 49, 0]


def test_a_kept_model_is_put_back_as_it_was_compiled() -> None:
    """Every byte of it, after fixtures were moved, sites toggled and an episode played."""
    env = one("libero_goal", 3)
    env.reset(env.episode(0, 1000), render=False)
    simulator: Any = env._libero._env.env  # type: ignore[attr-defined]
    fresh = mujoco.MjModel.from_xml_string(simulator._compiled.xml)
    kept = simulator.sim.model._model
    assert serialized(kept) != serialized(fresh)
    for step in range(20):
        env.step(ACTIONS(0, step), render=False)
    simulator._compiled.restore(kept)
    assert serialized(kept) == serialized(fresh)
    env.close()


def serialized(model: Any) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


@pytest.mark.parametrize(
    ("suite", "tasks", "limit"),
    [
        ("libero_spatial", 10, 280),
        ("libero_object", 10, 280),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
    ],
)
def test_every_task_of_a_suite_is_there(suite: str, tasks: int, limit: int) -> None:
    environments = make_environments(LiberoEnv(task=suite, observation_height=96, observation_width=96))
    assert [(env.task_group, env.task_id) for env in environments] == [(suite, i) for i in range(tasks)]
    assert {env.max_episode_steps for env in environments} == {limit}
    assert all(env.task_description for env in environments)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("suite", "every"), [*((suite, 1) for suite in SUITES), ("libero_90", 9)])
def test_every_task_of_a_suite_runs(suite: str, every: int) -> None:
    for env in make_environments(LiberoEnv(task=suite, observation_height=96, observation_width=96))[::every]:
        env.reset(env.episode(0, 1000))
        observation = Observation.empty(env.features)
        env.write_observation(observation)
        assert all(image.std() > 1 for image in observation.images.values())
        env.step(env.hold_action(), render=False)
        env.close()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (lambda: LiberoEnv(task="libero_nothing"), "libero_nothing"),
        (lambda: LiberoEnv(task="libero_object", task_ids=[99]), "99"),
        (lambda: LiberoEnv(task="libero_object", obs_type="pixels"), "pixels_agent_pos"),
    ],
)
def test_what_cannot_be_served_says_why(asked: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_environments(asked())


@pytest.mark.parametrize("how", ["closed", "collected"])
def test_a_simulator_that_ends_leaves_the_pictures_of_another_alone(basket: Environment, how: str) -> None:
    """Robosuite freed the textures of whichever context was current: all of the other's pictures changed."""

    def picture() -> list[bytes]:
        basket.reset(basket.episode(0, 1))
        observation = Observation.empty(basket.features)
        basket.write_observation(observation)
        return [image.tobytes() for image in observation.images.values()]

    other: Any = one("libero_object", 1)
    other.reset(other.episode(0, 1))
    expected = picture()  # This one's context is current from here on.
    if how == "closed":
        other.close()
    other._libero._env = None
    del other
    gc.collect()
    assert picture() == expected
