"""``--env.type=gymnasium``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import draccus
import numpy as np
import pytest
from env_rollouts import assert_same_episodes, random_actions, run_lerobot, run_ours
from gymnasium.spaces import Box, Dict
from lerobot.envs.configs import EnvConfig, PushtEnv
from odd_gym import PIXELS, STATE, STEPS, Plain, odd

from async_delta_inference.client.environments import Environment, EpisodeSpec, make_environments
from async_delta_inference.client.environments.gymnasium_id import GymnasiumEnv
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Observation


def cannot_render(env: Plain) -> Any:
    raise NotImplementedError


VECTOR = Box(-1, 1, (3,), np.float32)
BLIND = odd(
    "Blind", metadata={}, observation_space=VECTOR, observe=lambda env: np.zeros(3, np.float32), render=cannot_render
)


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


def reset(env: Environment) -> None:
    env.reset(EpisodeSpec(env.task_group, env.task_id, 0, 5))


def test_vectors_in_a_dictionary_are_the_state_one_after_the_other() -> None:
    parts = {"achieved": np.ones(2), "desired": np.full(1, 3.0), "observation": np.full(3, 2.0)}
    space = Dict({name: Box(-9, 9, part.shape, np.float64) for name, part in parts.items()})
    (env,) = make_environments(GymnasiumEnv(task=odd("Goal", observation_space=space, observe=lambda env: parts)))
    reset(env)
    assert env.state().tolist() == [1, 1, 3, 2, 2, 2]
    assert dict(env.features.images) == {"image": (16, 16, 3)}


def test_a_state_without_pixels_gets_what_is_rendered() -> None:
    seen = {"agent_pos": np.ones(2, np.float32), "secret": np.zeros(4)}
    space = Dict(agent_pos=STATE, secret=Box(-9, 9, (4,), np.float64))
    grey = {"render": lambda env: np.full((16, 16), 7, np.uint8)}
    task = odd("Unseen", observation_space=space, observe=lambda env: dict(seen), **grey)
    (env,) = make_environments(GymnasiumEnv(task=task))
    reset(env)
    observation = Observation.empty(env.features)
    env.write_observation(observation)
    assert observation.state.tolist() == [1, 1]
    assert np.all(observation.images["image"] == 7)
    assert observation.images["image"].shape == (16, 16, 3)


def test_a_state_may_stand_in_the_info() -> None:
    def reset_with_info(env: Plain, *, seed: int | None = None, options: Any = None) -> Any:
        env.t = 0
        return env.picture(), {"proprio": np.array([0.5, env.t])}

    def step(env: Plain, action: Any) -> Any:
        env.t += 1
        return env.picture(), 0.0, False, False, {"proprio": np.array([0.5, env.t])}

    task = odd("Pictures", observation_space=PIXELS, reset=reset_with_info, step=step)
    (env,) = make_environments(GymnasiumEnv(task=task, state_from_info="proprio"))
    reset(env)
    env.step(np.zeros(2, np.float32))
    assert env.state().tolist() == [0.5, 1]


def info_of(env: Plain) -> Any:
    proprio = {"joint_pos": np.array([0.5, env.t]), "gripper": np.float64(env.t)}
    return {"proprio/joint_pos": proprio["joint_pos"], "prev": {"proprio": proprio}, "name": "arm"}


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ("proprio/joint_pos", [0.5, 1]),
        ("prev/proprio/joint_pos", [0.5, 1]),
        ("prev", [1, 0.5, 1]),
        ("proprio, prev/proprio/gripper", [0.5, 1, 1]),
    ],
)
def test_a_state_in_the_info_is_named_by_key_by_path_or_by_what_they_begin_with(names: str, state: list[float]) -> None:
    def reset_with_info(env: Plain, *, seed: int | None = None, options: Any = None) -> Any:
        env.t = 0
        return {"pixels": {"front": env.picture()}}, info_of(env)

    def step(env: Plain, action: Any) -> Any:
        env.t += 1
        return {"pixels": {"front": env.picture()}}, 0.0, False, False, info_of(env) | {"success": False}

    space = Dict(pixels=Dict(front=PIXELS))
    task = odd("Paths", observation_space=space, reset=reset_with_info, step=step)
    (env,) = make_environments(GymnasiumEnv(task=task, state_from_info=names))
    reset(env)
    env.step(np.zeros(2, np.float32))
    assert env.state().tolist() == state
    assert dict(env.features.images) == {"front": (16, 16, 3)}


def test_pictures_and_vectors_under_other_names_are_cameras_and_state() -> None:
    def observe(env: Plain) -> Any:
        return {"sensors": {"wrist": env.picture(), "force": np.array([3.0])}, "agent": {"qpos": np.array([1.0, 2.0])}}

    space = Dict(sensors=Dict(wrist=PIXELS, force=Box(-9, 9, (1,))), agent=Dict(qpos=Box(-9, 9, (2,))))
    (env,) = make_environments(GymnasiumEnv(task=odd("Nested", observation_space=space, observe=observe)))
    reset(env)
    env.step(np.zeros(2, np.float32))
    observation = Observation.empty(env.features)
    env.write_observation(observation)
    assert observation.state.tolist() == [1, 2, 3]
    assert {name: image.mean() for name, image in observation.images.items()} == {"sensors_wrist": 1}


def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError, match="needs the package ale_py, which is not installed: pip install 'ale-py'"):
        make_environments(GymnasiumEnv(task="ALE/Pong-v5"))


def test_a_length_that_the_environment_cannot_have_is_refused_and_a_shorter_one_is_obeyed() -> None:
    @dataclass
    class Fixed(GymnasiumEnv):
        """Does not pass it on."""

        type = "gymnasium"  # type: ignore[assignment]
        episode_length: int | None = 400

        @property
        def gym_kwargs(self) -> dict[str, Any]:
            return {}

    assert make_environments(Fixed(task="odd_gym/Plain-v0"))[0].max_episode_steps == STEPS
    assert make_environments(Fixed(task="odd_gym/Plain-v0", episode_length=2))[0].max_episode_steps == 2
    with pytest.raises(ConfigError, match=f"--env.episode_length=20: .* ends after {STEPS} steps by itself"):
        make_environments(Fixed(task="odd_gym/Plain-v0", episode_length=20))


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
        (GymnasiumEnv(task="no_such_package/Thing-v0"), "needs the package no_such_package, which is not installed"),
        (GymnasiumEnv(task="absent_one:Thing-v0"), "needs the package absent_one"),
        (GymnasiumEnv(task="LunarLander-v3", make_kwargs={"continuous": True}), r"pip install .*gymnasium\[box2d\]"),
        (GymnasiumEnv(task=BLIND), r"renders no picture .*it knows none.* a policy needs one: NotImplementedError"),
        (GymnasiumEnv(task=BLIND, render_mode="human"), "renders no picture with render_mode 'human'"),
        (GymnasiumEnv(task="odd_gym/Plain-v0", state_from_info="state"), "--env.state_from_info=state: its info has"),
        (GymnasiumEnv(task="CartPole-v1"), "needed is a vector"),
        (GymnasiumEnv(task="Blackjack-v1"), "observes a tuple"),
    ],
)
def test_what_cannot_be_served_says_why(config: GymnasiumEnv, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_environments(config)
