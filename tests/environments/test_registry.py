"""Environments that this package does not know: run as LeRobot builds them, or refused with the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig, IsaaclabArenaEnv

from async_delta_inference.client.environments import (
    EnvironmentTraits,
    LeRobotEnvironment,
    build_tasks,
    make_environments,
    register_environment,
    registry,
)
from async_delta_inference.errors import ConfigError, MissingExtraError
from async_delta_inference.transport import Observation

CAMERA = spaces.Box(0, 255, (8, 6, 3), np.uint8)
JOINTS = spaces.Box(-1, 1, (3,), np.float64)


class Toy(gymnasium.Env[Any, Any]):
    """Counts its steps; observes whatever it was told to."""

    task_description = "count"

    def __init__(self, observation_space: Any, action_space: Any = None, render_mode: str | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.5, False, False, {"is_success": True}


gymnasium.register("gym_toy/Toy-v0", Toy, max_episode_steps=7)
gymnasium.register("gym_toy/Endless-v0", Toy)


@EnvConfig.register_subclass("toy")
@dataclass
class ToyConfig(EnvConfig):
    task: str | None = "Toy-v0"
    observation_space: Any = field(default_factory=lambda: spaces.Dict(pixels=CAMERA, agent_pos=JOINTS))
    action_space: Any = None
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {"action": PolicyFeature(type=FeatureType.ACTION, shape=(2,))}
    )

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"observation_space": self.observation_space, "action_space": self.action_space}


@pytest.fixture
def toy_registration() -> Iterator[None]:
    yield
    registry._factories.pop("toy", None)


def test_an_unregistered_environment_is_run_as_lerobot_builds_it() -> None:
    (env,) = make_environments(ToyConfig())
    assert env.features.state_names == ("state_0", "state_1", "state_2")
    assert dict(env.features.images) == {"image": (8, 6, 3)}
    assert (env.max_episode_steps, env.action_dim, env.task_description) == (7, 2, "count")
    env.reset(env.episode(0, 5))
    results = [env.step(np.zeros(2, np.float32)) for _ in range(7)]
    assert [r.truncated for r in results] == [False] * 6 + [True]
    assert all(r.success for r in results)
    with pytest.raises(ConfigError, match="how toy/0 holds still"):
        env.hold_action()


def test_one_registered_function_adds_an_environment(toy_registration: None) -> None:
    odd = spaces.Dict(eye=CAMERA, joints=JOINTS)
    traits = EnvironmentTraits(
        state_names=("a", "b", "c"),
        hold_action=lambda state, last: state[:2] if last is None else last,
        convert=lambda raw: {"pixels": {"eye": raw["eye"]}, "agent_pos": raw["joints"]},
    )

    @register_environment("toy")
    def make_toy(config: Any) -> list[Any]:
        return [LeRobotEnvironment(task, traits) for task in build_tasks(config)]

    (env,) = make_environments(ToyConfig(observation_space=odd))
    assert env.features.state_names == ("a", "b", "c")
    assert dict(env.features.images) == {"eye": (8, 6, 3)}
    env.reset(env.episode(0, 5))
    observation = Observation.empty(env.features)
    env.write_observation(observation)
    assert np.array_equal(observation.images["eye"], env._raw["pixels"]["eye"])  # type: ignore[attr-defined]
    assert np.array_equal(env.hold_action(), env.state()[:2])
    env.step(np.array([0.25, -0.5], np.float32))
    assert env.hold_action().tolist() == [0.25, -0.5]


class Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Renders while it is on, and counts."""

    on, rendered = True, 0

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        self.rendered += self.on
        return (observation, *rest)


def test_a_registered_environment_says_its_step_limit_and_how_to_go_on_without_rendering(
    toy_registration: None,
) -> None:
    cameras: list[Camera] = []

    def want_frames(env: Any, wanted: bool) -> None:
        env.on = wanted

    @register_environment("toy")
    def make_toy(config: Any) -> list[Any]:
        traits = EnvironmentTraits(max_episode_steps=3, want_frames=want_frames)
        tasks = build_tasks(config)
        cameras.extend(Camera(task.env) for task in tasks)
        return [
            LeRobotEnvironment(replace(task, env=camera), traits) for task, camera in zip(tasks, cameras, strict=True)
        ]

    (env,) = make_environments(ToyConfig(task="Endless-v0"))
    assert env.max_episode_steps == 3
    env.reset(env.episode(0, 5))
    for render in (False, True, False, False):
        env.step(np.zeros(2, np.float32), render=render)
    assert cameras[0].rendered == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ToyConfig(observation_space=spaces.Dict(agent_pos=JOINTS)), "'pixels'"),
        (ToyConfig(observation_space=spaces.Dict(pixels=CAMERA)), "without a state"),
        (ToyConfig(observation_space=CAMERA), "not a dictionary"),
        (ToyConfig(action_space=spaces.Discrete(4)), "needed is a vector"),
        (ToyConfig(task="Endless-v0"), "no step limit"),
        (ToyConfig(task="Missing-v0"), "gym_toy"),
        (IsaaclabArenaEnv(), "hub"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_served_is_refused_with_the_reason(config: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_environments(config)


def test_a_missing_simulator_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.envs.configs import PushtEnv

    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(MissingExtraError, match=r"async-delta-inference\[pusht\]"):
        make_environments(PushtEnv())


def test_an_installed_package_adds_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution as pip leaves it, found as Python finds any: nothing of ours is replaced."""
    (tmp_path / "toy_maker.py").write_text("def make(config): return [f'made from {config.type}']\n")
    metadata = tmp_path / "toy_maker-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-maker\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\ntoy = toy_maker:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_environments(ToyConfig()) == ["made from toy"]
    monkeypatch.delitem(sys.modules, "toy_maker")


def test_importing_the_registry_is_light() -> None:
    import subprocess

    code = (
        "import sys, async_delta_inference.client.environments\n"
        "heavy = {'torch', 'lerobot', 'gymnasium', 'robosuite', 'mujoco', 'cv2'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
