"""`PolicyServerPolicy` against PolicyServer itself: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_act import FEATURES, LARGER, ask, begin, observe, raw_observation, spec, upstream_actions, upstream_server

from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy, driven
from async_delta_inference.transport import Observation, ObservationFeatures

IMAGE_KEYS = {"observation.images.image", "observation.images.image2"}
SIZES = pytest.mark.parametrize("features", [FEATURES, LARGER], ids=["of the policy's size", "resized"])


@pytest.fixture(scope="module")
def wholesale_policy() -> PolicyServerPolicy:
    """As if lerobot's text were another than the tested one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driven, "are_as_tested", lambda *modules: False)
        return PolicyServerPolicy()


@SIZES
@pytest.mark.parametrize("way", ["policy", "wholesale_policy"])
def test_actions_are_bit_equal_to_upstream(
    way: str, features: ObservationFeatures, checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    policy: PolicyServerPolicy = request.getfixturevalue(way)
    session = policy.open(spec(checkpoint, features))
    begin(session)
    server = upstream_server(policy.driven.instructions)
    for timestep in range(5):
        observation = observe(timestep, features)
        actions = ask(policy, session, observation)
        assert isinstance(actions, np.ndarray)
        assert actions.dtype == np.float32
        assert actions.tobytes() == upstream_actions(server, observation, features).tobytes()
    session.close()


def test_a_changed_lerobot_is_called_as_a_whole(wholesale_policy: PolicyServerPolicy, checkpoint: Path) -> None:
    session = wholesale_policy.open(spec(checkpoint))
    assert wholesale_policy.driven.surroundings(spec(checkpoint)) is None
    session.close()


def surroundings(policy: PolicyServerPolicy, checkpoint: Path, features: ObservationFeatures) -> driven.Surroundings:
    wanted = spec(checkpoint, features)
    policy.open(wanted).close()
    found = policy.driven.surroundings(wanted)
    assert found is not None
    return found


def policy_input(around: driven.Surroundings, observation: Observation) -> dict[str, Any]:
    """What the policy is given."""
    return around.preprocess(*around.prepare(observation))


def upstream_policy_input(
    policy: PolicyServerPolicy, observation: Observation, features: ObservationFeatures
) -> dict[str, Any]:
    from lerobot.async_inference import helpers

    server = policy.driven.server
    return server.preprocessor(
        helpers.raw_observation_to_observation(
            raw_observation(observation, features), features.to_lerobot(), server.policy_image_features
        )
    )


@SIZES
@pytest.mark.parametrize("by_table", [True, False])
def test_policy_is_given_the_same_bits_as_by_upstream(
    policy: PolicyServerPolicy,
    checkpoint: Path,
    features: ObservationFeatures,
    by_table: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    around = surroundings(policy, checkpoint, features)
    assert set(around.prepare._tables) == IMAGE_KEYS
    if not by_table:
        monkeypatch.setattr(around.prepare, "_tables", {})
    observation = observe(3, features)
    expected = upstream_policy_input(policy, observation, features)
    given = policy_input(around, observation)
    assert set(given) == set(expected)
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert given[key] == value
            continue
        assert (given[key].dtype, given[key].shape) == (value.dtype, value.shape)
        assert given[key].stride() == value.stride()
        assert given[key].numpy().tobytes() == value.numpy().tobytes()


def test_all_pixel_values_become_the_same_floats(policy: PolicyServerPolicy, checkpoint: Path) -> None:
    around = surroundings(policy, checkpoint, FEATURES)
    observation = observe(1)
    observation.images["image"] = np.arange(96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)
    expected = upstream_policy_input(policy, observation, FEATURES)["observation.images.image"]
    assert torch.equal(policy_input(around, observation)["observation.images.image"], expected)
