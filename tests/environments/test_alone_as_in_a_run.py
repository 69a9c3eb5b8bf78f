"""An episode alone in a fresh simulator is the one in the middle of a run, bit for bit: nothing is remembered.

The process-wide random generators are disturbed before every reset: an episode depends on none of them.
"""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from env_rollouts import Episode, assert_same_episodes, random_actions
from lerobot.envs.configs import AlohaEnv, LiberoEnv, MetaworldEnv, PushtEnv
from numpy.typing import NDArray

from async_delta_inference.client.environments import Environment, make_environments
from async_delta_inference.transport import Observation

STEPS = 6
EPISODES = 3


def libero(suite: str, task_id: int) -> LiberoEnv:
    return LiberoEnv(task=suite, task_ids=[task_id], observation_height=48, observation_width=48)


@pytest.mark.parametrize(
    ("make_config", "low", "high"),
    [
        pytest.param(PushtEnv, 100, 400, id="pusht"),
        pytest.param(AlohaEnv, -0.5, 0.5, id="aloha"),
        pytest.param(lambda: MetaworldEnv(task="door-open-v3"), -1, 1, id="metaworld"),
        # A drawer is open in the beginning: LIBERO draws more numbers in every reset than in the one before it.
        pytest.param(lambda: libero("libero_spatial", 4), -1, 1, id="libero"),
    ],
)
def test_an_episode_alone_is_the_one_of_a_run(make_config: Any, low: float, high: float) -> None:
    with simulator(make_config()) as environment:
        run = [episode_of(environment, index, low, high) for index in range(EPISODES)]
        again = episode_of(environment, 1, low, high)
    with simulator(make_config()) as environment:
        alone = episode_of(environment, EPISODES - 1, low, high)
    assert_same_episodes([alone, again], [run[-1], run[1]])


@contextlib.contextmanager
def simulator(config: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        (environment,) = make_environments(config)
    yield environment
    environment.close()


def episode_of(environment: Environment, index: int, low: float, high: float) -> Episode:
    disturb_generators()
    environment.reset(environment.episode(index, 1000 + index))
    actions = random_actions(low, high, environment.action_dim)
    episode = Episode()
    for step in range(STEPS):
        outcome = environment.step(actions(index, step), render=step % 2 == 0)
        episode.rewards.append(outcome.reward)
        episode.successes.append(outcome.success)
        episode.states.append(environment.state())
        if step % 2 == 0:
            episode.images[step] = frames(environment)
    return episode


def frames(environment: Environment) -> dict[str, NDArray[np.uint8]]:
    observation = Observation.empty(environment.features)
    environment.write_observation(observation)
    return dict(observation.images)


def disturb_generators() -> None:
    for module in (random, np.random):
        module.seed(int(np.random.default_rng().integers(2**31)))
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))
