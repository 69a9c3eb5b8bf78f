"""What is left of a closed simulator takes nothing from the next one when Python collects it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from lerobot.envs.configs import AlohaEnv, MetaworldEnv

from async_delta_inference.client.environments import Environment, make_environments
from async_delta_inference.transport import Observation


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is collected but where a test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def picture(environment: Environment) -> list[bytes]:
    environment.reset(environment.episode(0, 1))
    observation = Observation.empty(environment.features)
    environment.write_observation(observation)
    return [image.tobytes() for image in observation.images.values()]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(MetaworldEnv(task="door-open-v3"), MetaworldEnv(task="push-v3"), id="metaworld"),
        # dm_control insists that nobody else holds its contexts.
        pytest.param(AlohaEnv(), AlohaEnv(), id="aloha", marks=pytest.mark.filterwarnings("error")),
    ],
)
def test_pictures_stay_when_a_closed_simulator_is_collected(first: Any, second: Any, uncollected: None) -> None:
    (closed,) = make_environments(first)
    picture(closed)
    closed.close()
    del closed
    (environment,) = make_environments(second)
    expected = picture(environment)
    gc.collect()
    assert picture(environment) == expected
    assert any(expected[0])
    environment.close()
