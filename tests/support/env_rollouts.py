"""Whole episodes through LeRobot's own vector environment and through ours, recorded alike, to be compared."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference.client.environments import Environment
from async_delta_inference.transport import Observation

ActionSource = Callable[[int, int], NDArray[np.float32]]
"""From episode and step to the action (A,): scripted, so that both sides run the same."""


@dataclass
class Episode:
    """What an episode gave. Observation t is the one before step t; the last is the one after the last step."""

    rewards: list[float] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    terminated: bool = False
    states: list[NDArray[np.float32]] = field(default_factory=list)
    images: dict[int, dict[str, NDArray[np.uint8]]] = field(default_factory=dict)
    init_state_id: int | None = None
    task: str = ""


def random_actions(low: float, high: float, action_dim: int) -> ActionSource:
    def action(episode: int, step: int) -> NDArray[np.float32]:
        return np.random.default_rng((episode, step)).uniform(low, high, action_dim).astype(np.float32)

    return action


def run_ours(
    env: Environment,
    actions: ActionSource,
    *,
    episodes: int,
    seed: int = 1000,
    every: int = 1,
    max_steps: int | None = None,
    video: bool = False,
) -> list[Episode]:
    """Runs episodes, rendering the observations whose index is a multiple of ``every`` only."""
    limit = min(env.max_episode_steps, max_steps or env.max_episode_steps)
    observation = Observation.empty(env.features)
    results = []
    for index in range(episodes):
        episode = Episode()

        def look(t: int, episode: Episode = episode) -> None:
            if t % every == 0:
                env.write_observation(observation)
                episode.images[t] = {name: image.copy() for name, image in observation.images.items()}
                assert observation.state.tobytes() == env.state().tobytes()
            if video:
                env.video_frame()
            episode.states.append(env.state())

        spec = env.episode(index, seed + index)
        env.reset(spec, render=True)
        episode.init_state_id, episode.task = spec.init_state_id, env.task_description
        look(0)
        for t in range(limit):
            result = env.step(actions(index, t), render=(t + 1) % every == 0)
            episode.rewards.append(result.reward)
            # LeRobot counts what an environment does not say as a failure.
            episode.successes.append(bool(result.success))
            look(t + 1)
            if result.terminated or result.truncated:
                episode.terminated = result.terminated
                break
        results.append(episode)
    return results


def run_lerobot(
    env_config: Any,
    actions: ActionSource,
    *,
    episodes: int,
    seed: int = 1000,
    max_steps: int | None = None,
    task_id: int = 0,
    keep_images: Iterable[int] | None = None,
) -> list[Episode]:
    """The loop of LeRobot's ``rollout`` with scripted actions in place of a policy."""
    from lerobot.envs.factory import make_env
    from lerobot.envs.utils import NEW_ROLLOUT_OPTION, preprocess_observation

    with contextlib.redirect_stdout(io.StringIO()):
        (tasks,) = make_env(env_config, n_envs=1).values()
    vector = tasks[task_id]
    processor, _ = env_config.get_env_processors()
    results = []
    for index in range(episodes):
        episode = Episode()

        def look(raw: Any, t: int, episode: Episode = episode) -> None:
            seen = processor(preprocess_observation(raw))
            episode.states.append(seen["observation.state"].numpy()[0])
            if keep_images is None or t in keep_images:
                episode.images[t] = images_of(seen)

        raw, _ = vector.reset(seed=[seed + index], options={NEW_ROLLOUT_OPTION: True})
        look(raw, 0)
        for t in range(min(vector.call("_max_episode_steps")[0], max_steps or 10**9)):
            raw, reward, terminated, truncated, info = vector.step(actions(index, t)[None])
            episode.rewards.append(float(reward[0]))
            episode.successes.append(success_of(info))
            if terminated[0] or truncated[0]:
                episode.terminated = bool(terminated[0])
                break
            look(raw, t + 1)
        results.append(episode)
    vector.close()
    return results


def images_of(seen: dict[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """LeRobot's float images back as uint8, exact; its nameless camera as ``image``."""
    images = {}
    for key, value in seen.items():
        if isinstance(value, torch.Tensor) and key.startswith("observation.image"):
            name = key.removeprefix("observation.images.").replace("observation.image", "image")
            pixels = (value[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
            assert torch.equal(pixels.permute(2, 0, 1).float() / 255, value[0])
            images[name] = pixels.numpy()
    return images


def success_of(info: dict[str, Any]) -> bool:
    return bool(np.asarray(info.get("final_info", info).get("is_success", [False]))[0])


def assert_same_episodes(ours: list[Episode], theirs: list[Episode]) -> None:
    """Bit equality of everything that both recorded. LeRobot's terminal observation may be of the next episode."""
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert left.rewards == right.rewards
        assert left.successes == right.successes
        assert left.terminated == right.terminated
        for t, (a, b) in enumerate(zip(left.states, right.states, strict=False)):
            assert a.tobytes() == b.tobytes(), f"state {t} differs"
        common = left.images.keys() & right.images.keys()
        assert common
        for t in sorted(common):
            assert left.images[t].keys() == right.images[t].keys()
            for name, image in left.images[t].items():
                assert np.array_equal(image, right.images[t][name]), f"image {name!r} of step {t} differs"
