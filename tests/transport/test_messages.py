"""Messages refuse what does not fit, at construction or before they are sent."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from async_delta_inference.errors import InvalidMessageError
from async_delta_inference.transport import Observation, ObservationFeatures, SessionSpec, TransportOptions

FEATURES = ObservationFeatures(("x", "y"), {"front": (4, 6, 3)})


@pytest.mark.parametrize(
    ("names", "images"),
    [
        ((), {}),
        (("x", "x"), {}),
        (("x", "front"), {"front": (4, 6, 3)}),
        (("task",), {}),
        (("environment_state.0", "x"), {}),
        (("x",), {"": (4, 6, 3)}),
        (("x",), {"front": (4, 0, 3)}),
    ],
)
def test_features_that_cannot_be_served_are_refused(names: tuple[str, ...], images: dict) -> None:
    with pytest.raises(InvalidMessageError):
        ObservationFeatures(names, images)


def test_features_are_lerobot_features() -> None:
    assert FEATURES.to_lerobot() == {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "observation.images.front": {
            "dtype": "image",
            "shape": (4, 6, 3),
            "names": ["height", "width", "channels"],
        },
    }


def test_features_cannot_be_changed_and_survive_pickling() -> None:
    with pytest.raises(TypeError):
        FEATURES.images["front"] = (1, 1, 1)  # type: ignore[index]
    assert pickle.loads(pickle.dumps(FEATURES)) == FEATURES


@pytest.mark.parametrize(
    "change",
    [{"actions_per_chunk": 0}, {"action_dim": 0}],
)
def test_session_that_cannot_be_is_refused(change: dict) -> None:
    fields = {"policy_type": "act", "pretrained_name_or_path": "p", "actions_per_chunk": 1, "action_dim": 1} | change
    with pytest.raises(InvalidMessageError):
        SessionSpec(features=FEATURES, **fields)


@pytest.mark.parametrize(("policy_type", "path", "names"), [("act", "p", True), ("", "p", True), ("act", "", False)])
def test_session_may_ask_for_whatever_is_served(policy_type: str, path: str, names: bool) -> None:
    assert SessionSpec(policy_type, path, 1, FEATURES, 1).names_policy is names


@pytest.mark.parametrize("name", ["connect_timeout_s", "setup_timeout_s", "inference_timeout_s"])
def test_deadlines_must_be_positive(name: str) -> None:
    with pytest.raises(InvalidMessageError, match=name):
        TransportOptions(**{name: 0.0})


def test_copy_shares_no_memory() -> None:
    observation = Observation.empty(FEATURES)
    observation.state[:] = 1
    observation.images["front"][:] = 2
    copy = observation.copy()
    assert not np.shares_memory(copy.state, observation.state)
    assert not np.shares_memory(copy.images["front"], observation.images["front"])
    observation.state[:] = 3
    assert (copy.state == 1).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestep", -1),
        ("timestep", 2**63),
        ("timestep", 1.5),
        ("timestep", None),
        ("episode", -1),
        ("episode", 0.0),
        ("timestamp_s", float("nan")),
        ("timestamp_s", 10**400),
        ("timestamp_s", None),
        ("task", None),
        ("task", "\ud800"),
        ("task", "x" * 4097),
        ("task", "ü" * 2049),
    ],
)
def test_scalars_are_bounded(field: str, value: object) -> None:
    observation = Observation.empty(FEATURES)
    setattr(observation, field, value)
    with pytest.raises(InvalidMessageError, match=field):
        observation.check(FEATURES)
