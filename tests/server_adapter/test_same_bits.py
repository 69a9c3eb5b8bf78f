"""Both policies against PolicyServer itself: the same bits, where PolicyServer does not resize what it is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_act import FEATURES, LARGER, ask, begin, observe, raw_observation, spec, upstream_actions, upstream_server

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.lerobot.surroundings import Surroundings
from async_delta_inference.transport import Observation, ObservationFeatures

IMAGE_KEYS = {"observation.images.image", "observation.images.image2"}


@pytest.mark.parametrize(
    ("host", "features"), [("policy", FEATURES), ("policy_server_policy", FEATURES), ("policy_server_policy", LARGER)]
)
def test_actions_are_bit_equal_to_upstream(
    host: str, features: ObservationFeatures, checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    policy: Any = request.getfixturevalue(host)
    session = policy.open(spec(checkpoint, features))
    begin(session)
    server = upstream_server(spec(checkpoint, features))
    for timestep in range(4):
        observation = observe(timestep, features)
        actions = ask(policy, session, observation)
        assert isinstance(actions, np.ndarray)
        assert actions.dtype == np.float32
        assert actions.tobytes() == upstream_actions(server, observation, features).tobytes()
    session.close()


def surroundings(policy: LeRobotPolicy, checkpoint: Path) -> Surroundings:
    session = policy.open(spec(checkpoint))
    session.close()
    return session.around


def policy_input(around: Surroundings, observation: Observation) -> dict[str, Any]:
    """What the policy is given."""
    return around.preprocess(*around.prepare(observation, observation.task))


def upstream_policy_input(server: Any, observation: Observation, features: ObservationFeatures) -> dict[str, Any]:
    from lerobot.async_inference import helpers

    return server.preprocessor(
        helpers.raw_observation_to_observation(
            raw_observation(observation, features), features.to_lerobot(), server.policy_image_features
        )
    )


@pytest.mark.parametrize("by_table", [True, False])
def test_policy_is_given_the_same_bits_as_by_upstream(
    policy: LeRobotPolicy, checkpoint: Path, by_table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = surroundings(policy, checkpoint)
    assert set(around.prepare._tables) == IMAGE_KEYS
    if not by_table:
        monkeypatch.setattr(around.prepare, "_tables", {})
    observation = observe(3)
    expected = upstream_policy_input(upstream_server(spec(checkpoint)), observation, FEATURES)
    given = policy_input(around, observation)
    assert set(given) == set(expected)
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert given[key] == value
            continue
        assert (given[key].dtype, given[key].shape) == (value.dtype, value.shape)
        assert given[key].stride() == value.stride()
        assert given[key].numpy().tobytes() == value.numpy().tobytes()


def test_all_pixel_values_become_the_same_floats(policy: LeRobotPolicy, checkpoint: Path) -> None:
    around = surroundings(policy, checkpoint)
    observation = observe(1)
    observation.images["image"] = np.arange(96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)
    expected = upstream_policy_input(upstream_server(spec(checkpoint)), observation, FEATURES)
    assert torch.equal(
        policy_input(around, observation)["observation.images.image"], expected["observation.images.image"]
    )
