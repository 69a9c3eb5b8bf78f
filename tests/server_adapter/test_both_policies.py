"""What both policies say of themselves, what they load, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_act import COLUMNS, FEATURES, LARGER, ROWS, ask, begin, observe, spec

from async_delta_inference.errors import SetupRefusedError
from async_delta_inference.transport import ObservationFeatures, Policy, PolicySession


@pytest.fixture(scope="module", params=["policy", "policy_server_policy"])
def served(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def loaded(policy: Any) -> object:
    return policy.driven.server.policy if hasattr(policy, "driven") else policy.loaded.policy


# What it says of itself.


def test_it_is_a_policy(served: Any, checkpoint: Path) -> None:
    assert isinstance(served, Policy)
    session = served.open(spec(checkpoint))
    assert isinstance(session, PolicySession)
    session.close()


def test_it_names_the_checkpoint_and_the_length_of_its_actions(served: Any, checkpoint: Path) -> None:
    needs = served.describe(spec(checkpoint))
    assert needs.description == f"act from {checkpoint}"
    assert needs.action_dim == COLUMNS
    with pytest.raises(SetupRefusedError, match=r"action has 6 elements, the policy act from .* has 7"):
        needs.check(spec(checkpoint, action_dim=6))


@pytest.mark.parametrize("shape", [None, [7, 7], [0]])
def test_length_that_no_file_tells_is_left_open(served: Any, tmp_path: Path, shape: object) -> None:
    features = None if shape is None else {"action": {"shape": shape}}
    (tmp_path / "config.json").write_text(json.dumps({"type": "act", "output_features": features}))
    assert served.describe(spec(tmp_path)).action_dim is None


@pytest.mark.parametrize(
    "config", [None, "", "[]", "not json", "[" * 10**5, json.dumps({"output_features": {"action": {"shape": ["7"]}}})]
)
def test_folder_without_a_configuration_is_refused(served: Any, tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(SetupRefusedError, match=r"config\.json"):
        served.describe(spec(tmp_path))


@pytest.mark.parametrize("path", ["somebody/no-such-policy", "x" * 5000, "nul\0byte", "\ud800"])
def test_name_that_is_no_checkpoint_is_refused(served: Any, path: str) -> None:
    with pytest.raises(SetupRefusedError):
        served.describe(spec(Path(path)))


def test_session_without_a_policy_is_refused(served: Any, checkpoint: Path) -> None:
    wanted = spec(checkpoint)
    object.__setattr__(wanted, "pretrained_name_or_path", "")
    with pytest.raises(SetupRefusedError, match=r"give .*--pretrained_name_or_path"):
        served.describe(wanted)


# What it loads.


def test_policy_is_loaded_once_for_all_who_ask_for_it(served: Any, checkpoint: Path) -> None:
    first = served.open(spec(checkpoint))
    first_loaded = loaded(served)
    others = [served.open(spec(checkpoint, actions_per_chunk=5)), served.open(spec(checkpoint, LARGER))]
    assert loaded(served) is first_loaded
    for session in (first, *others):
        session.close()
    served.open(spec(checkpoint)).close()
    assert loaded(served) is first_loaded


def test_checkpoint_that_was_written_anew_is_loaded_anew(served: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "act")
    session = served.open(spec(folder))
    first_loaded = loaded(served)
    (folder / "model.safetensors").touch()
    with pytest.raises(SetupRefusedError, match=r"1 session; .* whose files have changed since, can be served"):
        served.open(spec(folder))
    assert loaded(served) is first_loaded
    session.close()
    served.open(spec(folder)).close()
    assert loaded(served) is not first_loaded


def test_another_policy_is_refused_while_sessions_are_open(served: Any, checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    sessions = [served.open(spec(checkpoint)) for _ in range(2)]
    for open_sessions in (2, 1):
        with pytest.raises(SetupRefusedError) as info:
            served.open(spec(other))
        text = str(info.value)
        assert f"serves act from {checkpoint} on cpu to {open_sessions} session" in text
        assert f"; act from {other} on cpu can be served when they have ended, or by another server" in text
        answered = ask(served, sessions[-1], observe(1))
        assert isinstance(answered, np.ndarray)
        sessions.pop().close()
    session = served.open(spec(other))
    begin(session)
    assert isinstance(ask(served, session, observe(1)), np.ndarray)
    session.close()


# What it refuses.


@pytest.mark.parametrize(
    ("changes", "features", "words"),
    [
        ({"policy_type": "nonsense"}, FEATURES, ["nonsense"]),
        ({"action_dim": 6}, FEATURES, ["6", "7"]),
        ({}, ObservationFeatures(("x", "y"), dict(FEATURES.images)), ["state", "2", "8"]),
        (
            {},
            ObservationFeatures(FEATURES.state_names, {"front": (96, 96, 3)}),
            ["cameras", "front", "images.image2"],
        ),
        (
            {},
            ObservationFeatures(FEATURES.state_names, {"image": (96, 96, 3), "image2": (96, 96, 1)}),
            ["image2", "3"],
        ),
    ],
)
def test_session_that_cannot_be_served_is_refused(
    served: Any,
    checkpoint: Path,
    changes: dict[str, Any],
    features: ObservationFeatures,
    words: list[str],
) -> None:
    with pytest.raises(SetupRefusedError) as info:
        served.open(spec(checkpoint, features, **changes))
    assert all(word in str(info.value) for word in words), str(info.value)
    session = served.open(spec(checkpoint))
    begin(session)
    answered = ask(served, session, observe(1))
    assert isinstance(answered, np.ndarray)
    assert answered.shape == (ROWS, COLUMNS)
    session.close()


def test_absent_checkpoint_is_refused_and_the_next_is_loaded(served: Any, tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(SetupRefusedError, match="nothing-here"):
        served.open(spec(tmp_path / "nothing-here"))
    served.open(spec(checkpoint)).close()
