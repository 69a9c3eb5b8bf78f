"""Frames that nobody looks at are left out where it was proven that this changes nothing."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from odd_gym import STATE, Plain, evaluate_odd, odd

from async_delta_inference.client.environments import (
    Environment,
    EnvironmentOptions,
    EpisodeSpec,
    frame_proof,
    make_environments,
    proof_cache,
    unseen_frames,
)
from async_delta_inference.client.environments.gymnasium_id import GymnasiumEnv
from async_delta_inference.transport import Observation

SIDE = 16
SCENE = """
<mujoco><worldbody><light pos="0 0 3"/><camera name="front" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
<body><joint name="hinge" axis="0 1 0"/><geom type="capsule" size="0.2" fromto="0 0 0 0.7 0 0" rgba="1 0.4 0 1"/></body>
</worldbody><actuator><motor joint="hinge"/></actuator></mujoco>
"""


class Pendulum(Plain):
    """Swings, and observes itself by one MuJoCo camera."""

    observation_space: Any = Dict(pixels=Box(0, 255, (SIDE, SIDE, 3), np.uint8), agent_pos=STATE)
    action_space: Any = Box(-1, 1, (1,), np.float32)
    built = 0

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        type(self).built += 1
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, SIDE, SIDE)

    def picture(self) -> Any:
        self.renderer.update_scene(self.data, camera="front")
        return self.renderer.render()

    def observe(self) -> Any:
        self.shown = self.picture()
        state = np.array([self.data.qpos[0], self.data.qvel[0]], np.float32)
        return {"pixels": self.shown, "agent_pos": state}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[0] = np.random.default_rng(seed).uniform(-1, 1)
        mujoco.mj_forward(self.model, self.data)
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, nstep=20)
        return super().step(action)

    def close(self) -> None:
        self.renderer.close()


def pendulum(name: str, **members: Any) -> tuple[str, type[Pendulum]]:
    """A pendulum with other members, registered under a new id; the id and its class."""
    class_ = type(name, (Pendulum,), {"built": 0, **members})
    return odd(name, class_), class_


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(proof_cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(frame_proof, "STEPS", 10)
    return tmp_path / "cache" / "frames"


def made(task: str, *, on_demand: bool = True, **flags: Any) -> Environment:
    (env,) = make_environments(GymnasiumEnv(task=task, **flags), EnvironmentOptions(render_on_demand=on_demand))
    return env


def looks(env: Environment, *, steps: int, every: int) -> tuple[list[Any], int]:
    """Everything that an episode gives, the frames of every so many steps, and how often something was rendered."""
    env.reset(EpisodeSpec(env.task_group, env.task_id, 0, 1000))
    before = unseen_frames.looks_taken()
    observation = Observation.empty(env.features)
    told: list[Any] = []
    for step in range(1, steps + 1):
        seen = step % every == 0
        outcome = env.step(np.full(env.action_dim, np.sin(step), np.float32), render=seen)
        told.append((outcome, env.state().tobytes()))
        if seen:
            env.write_observation(observation)
            told.append({name: image.tobytes() for name, image in observation.images.items()})
    return told, unseen_frames.looks_taken() - before


def test_only_what_is_looked_at_is_rendered_and_everything_is_equal() -> None:
    task, _ = pendulum("Swings")
    on_demand, always = made(task), made(task, on_demand=False)
    seldom, rendered = looks(on_demand, steps=5, every=5)
    assert rendered == 1
    everything, rendered = looks(always, steps=5, every=5)
    assert rendered == 5
    assert seldom == everything
    assert np.any(np.frombuffer(seldom[-1]["image"], np.uint8) > 100)  # The pendulum is in the picture.
    assert on_demand.repeatable is True  # type: ignore[attr-defined]
    on_demand.close()
    always.close()


def test_a_proof_is_made_once_for_as_long_as_nothing_changes(cache: Path) -> None:
    task, class_ = pendulum("Kept")
    first = made(task)
    looks(first, steps=2, every=2)
    built = class_.built
    assert built >= 3  # One that was there, two that were tried.
    assert len(list(cache.iterdir())) == 1
    second = made(task)
    looks(second, steps=2, every=2)
    assert class_.built == built + 1
    third = made(task, fps=31)
    looks(third, steps=2, every=2)
    assert len(list(cache.iterdir())) == 2
    for env in (first, second, third):
        env.close()


def bright(self: Pendulum, action: Any) -> Any:
    observation, _, *rest = Pendulum.step(self, action)
    return observation, float(self.shown[..., 0].mean()), *rest


def in_state(self: Pendulum) -> Any:
    observation = Pendulum.observe(self)
    observation["agent_pos"][1] = self.shown.astype(np.float64).std()
    return observation


def before_last(self: Pendulum) -> Any:
    observation = Pendulum.observe(self)
    last, self.last = getattr(self, "last", observation["pixels"]), observation["pixels"]
    return observation | {"pixels": last}


COUNT = itertools.count()


def restless(self: Pendulum) -> Any:
    observation = Pendulum.observe(self)
    observation["agent_pos"][1] = next(COUNT) % 7
    return observation


@pytest.mark.parametrize(
    ("name", "members", "reason", "repeatable"),
    [
        ("Bright", {"step": bright}, "its rewards differ where frames are left out", True),
        ("Sees", {"observe": in_state}, "its states differ where frames are left out", True),
        ("Late", {"observe": before_last}, "its frames differ where frames are left out", True),
        ("Restless", {"observe": restless}, "it is not repeatable: its states differ with the same seed", False),
    ],
)
def test_where_something_depends_on_frames_all_are_rendered_and_it_is_said(
    name: str,
    members: dict[str, Any],
    reason: str,
    repeatable: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task, _ = pendulum(name, **members)
    env = made(task)
    _, rendered = looks(env, steps=5, every=5)
    assert rendered == 5
    assert env.repeatable is repeatable  # type: ignore[attr-defined]
    assert f"{name}-v0/0: every frame is rendered: {reason}" in caplog.text
    env.close()


def test_what_draws_from_the_generators_of_the_process_is_repeatable_too() -> None:
    def reset(self: Pendulum, *, seed: int | None = None, options: Any = None) -> Any:
        Pendulum.reset(self, seed=seed)
        self.model.geom_rgba[0, :3] = np.random.random_sample(3)
        return self.observe(), {}

    env = made(pendulum("Shuffles", reset=reset)[0])
    _, rendered = looks(env, steps=5, every=5)
    assert rendered == 1
    assert env.repeatable is True  # type: ignore[attr-defined]
    env.close()


def test_what_cannot_be_tried_is_rendered_and_its_error_is_the_episodes(caplog: pytest.LogCaptureFixture) -> None:
    def step(self: Pendulum, action: Any) -> Any:
        raise SystemExit(3)

    env = made(pendulum("Ends", step=step)[0])
    env.reset(EpisodeSpec(env.task_group, env.task_id, 0, 1000))
    assert "it failed when it was tried: SystemExit: 3" in caplog.text
    env.close()


def test_an_environment_without_a_renderer_is_not_bothered(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        env = made("odd_gym/Plain-v0")
        looks(env, steps=2, every=2)
    assert caplog.text == ""


def test_what_a_wrapper_renders_for_a_vector_is_left_out_too() -> None:
    rendered = []

    def render(self: Plain) -> Any:
        rendered.append(self.t)
        return self.picture()

    vector = Box(-9, 99, (3,), np.float32)
    observe = {"observation_space": vector, "observe": lambda self: np.full(3, self.t, np.float32)}
    env = made(odd("Vector", **observe, render=render))
    env.reset(EpisodeSpec(env.task_group, env.task_id, 0, 1000))
    rendered.clear()
    told, _ = looks(env, steps=5, every=5)
    assert rendered == [0, 5]
    assert set(told[-1]["image"]) == {5}
    env.close()


def test_random_generators_are_as_before() -> None:
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()

    def step(self: Pendulum, action: Any) -> Any:
        np.random.random_sample()
        return Pendulum.step(self, action)

    env = made(pendulum("Draws", step=step)[0])
    env.reset(EpisodeSpec(env.task_group, env.task_id, 0, 1000))
    assert np.random.random_sample() == expected
    env.close()


def test_a_whole_evaluation_renders_what_it_sends_and_with_always_everything(tmp_path: Path) -> None:
    task, _ = pendulum("Whole", action_space=Box(-1, 1, (2,), np.float32), step=two_actions)
    evaluate_odd(task, tmp_path / "first")
    counts = []
    for render in ("on_demand", "always"):
        before = unseen_frames.looks_taken()
        _, result = evaluate_odd(task, tmp_path / render, render=render, chunk_size_threshold=0.0)
        counts.append((unseen_frames.looks_taken() - before, result.episodes[0].states.tobytes()))
    assert counts[0][0] < counts[1][0]
    assert counts[0][1] == counts[1][1]


def two_actions(self: Pendulum, action: Any) -> Any:
    return Pendulum.step(self, action[:1])


@pytest.fixture
def physics() -> Iterator[Any]:
    from dm_control import mujoco as dm_mujoco

    physics = dm_mujoco.Physics.from_xml_string(SCENE)
    yield physics
    physics.free()


def test_dm_control_goes_the_same_way(physics: Any) -> None:
    def look() -> Any:
        return physics.render(SIDE, SIDE, camera_id="front")

    with unseen_frames.frames_unseen(False):
        first = look()
        before = unseen_frames.looks_taken()
        with unseen_frames.frames_unseen():
            physics.named.data.qpos["hinge"] = 1.0
            physics.forward()
            look()
        assert unseen_frames.looks_taken() == before
        assert not np.array_equal(look(), first)
        assert unseen_frames.looks_taken() == before + 1


def test_gymnasiums_own_goes_the_same_way_and_is_equal() -> None:
    task, flags = "HalfCheetah-v5", {"make_kwargs": {"width": 64, "height": 64}}
    on_demand, always = made(task, **flags), made(task, on_demand=False, **flags)
    seldom, rendered = looks(on_demand, steps=8, every=4)
    everything, _ = looks(always, steps=8, every=4)
    assert rendered < 8
    assert seldom == everything
    on_demand.close()
    always.close()
