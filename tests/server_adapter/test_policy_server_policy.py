"""What `PolicyServerPolicy` says of itself, what it loads, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_act import COLUMNS, FEATURES, LARGER, ROWS, ask, begin, observe, spec

from async_delta_inference.errors import SetupRefusedError
from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy
from async_delta_inference.transport import ObservationFeatures, Policy, PolicySession

# What it says of itself.


def test_it_is_a_policy(policy: PolicyServerPolicy, checkpoint: Path) -> None:
    assert isinstance(policy, Policy)
    session = policy.open(spec(checkpoint))
    assert isinstance(session, PolicySession)
    session.close()


def test_it_names_the_checkpoint_and_the_length_of_its_actions(policy: PolicyServerPolicy, checkpoint: Path) -> None:
    needs = policy.describe(spec(checkpoint))
    assert needs.description == f"act from {checkpoint}"
    assert needs.action_dim == COLUMNS
    with pytest.raises(SetupRefusedError, match=r"action has 6 elements, the policy act from .* has 7"):
        needs.check(spec(checkpoint, action_dim=6))


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "[]",
        "not json",
        "[" * 10**5,
        json.dumps({"output_features": None}),
        json.dumps({"output_features": {"action": {"shape": [7, 7]}}}),
        json.dumps({"output_features": {"action": {"shape": ["7"]}}}),
        json.dumps({"output_features": {"action": {"shape": [0]}}}),
    ],
)
def test_length_that_no_file_tells_is_left_open(policy: PolicyServerPolicy, tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert policy.describe(spec(tmp_path)).action_dim is None


@pytest.mark.parametrize("path", ["somebody/no-such-policy", "x" * 5000, "nul\0byte", "\ud800"])
def test_name_that_is_no_folder_is_described(policy: PolicyServerPolicy, path: str) -> None:
    assert policy.describe(spec(Path(path))).action_dim is None


@pytest.mark.parametrize("changes", [{"policy_type": ""}, {"path": ""}])
def test_session_without_a_policy_is_refused(
    policy: PolicyServerPolicy, checkpoint: Path, changes: dict[str, str]
) -> None:
    path = changes.get("path", str(checkpoint))
    wanted = spec(checkpoint, policy_type=changes.get("policy_type", "act"))
    object.__setattr__(wanted, "pretrained_name_or_path", path)
    with pytest.raises(SetupRefusedError, match="give --policy_type and --pretrained_name_or_path"):
        policy.describe(wanted)


# What it loads.


def test_policy_is_loaded_once_for_all_who_ask_for_it(policy: PolicyServerPolicy, checkpoint: Path) -> None:
    first = policy.open(spec(checkpoint))
    loaded = policy.driven.server.policy
    others = [policy.open(spec(checkpoint, actions_per_chunk=5)), policy.open(spec(checkpoint, LARGER))]
    assert policy.driven.server.policy is loaded
    for session in (first, *others):
        session.close()
    policy.open(spec(checkpoint)).close()
    assert policy.driven.server.policy is loaded


def test_checkpoint_that_was_written_anew_is_loaded_anew(
    policy: PolicyServerPolicy, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "act")
    session = policy.open(spec(folder))
    loaded = policy.driven.server.policy
    (folder / "model.safetensors").touch()
    with pytest.raises(SetupRefusedError, match=r"1 session; .* whose files have changed since, can be served"):
        policy.open(spec(folder))
    assert policy.driven.server.policy is loaded
    session.close()
    policy.open(spec(folder)).close()
    assert policy.driven.server.policy is not loaded


def test_another_policy_is_refused_while_sessions_are_open(
    policy: PolicyServerPolicy, checkpoint: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    sessions = [policy.open(spec(checkpoint)) for _ in range(2)]
    for open_sessions in (2, 1):
        with pytest.raises(SetupRefusedError) as info:
            policy.open(spec(other))
        text = str(info.value)
        assert f"serves act from {checkpoint} on cpu to {open_sessions} session" in text
        assert f"; act from {other} on cpu can be served when they have ended, or by another server" in text
        answered = ask(policy, sessions[-1], observe(1))
        assert isinstance(answered, np.ndarray)
        sessions.pop().close()
    session = policy.open(spec(other))
    begin(session)
    assert isinstance(ask(policy, session, observe(1)), np.ndarray)
    session.close()


# What it refuses.


@pytest.mark.parametrize(
    ("changes", "features", "words"),
    [
        ({"policy_type": "nonsense"}, FEATURES, ["nonsense", "not supported"]),
        ({"action_dim": 6}, FEATURES, ["action", "6", "(7,)"]),
        ({}, ObservationFeatures(("x", "y"), dict(FEATURES.images)), ["state", "2", "(8,)"]),
        (
            {},
            ObservationFeatures(FEATURES.state_names, {"front": (96, 96, 3)}),
            ["cameras", "images.front", "images.image2"],
        ),
        (
            {},
            ObservationFeatures(FEATURES.state_names, {"image": (96, 96, 3), "image2": (96, 96, 1)}),
            ["'image2'", "1 channels", "(3, 96, 96)"],
        ),
    ],
)
def test_session_that_cannot_be_served_is_refused(
    policy: PolicyServerPolicy,
    checkpoint: Path,
    changes: dict[str, Any],
    features: ObservationFeatures,
    words: list[str],
) -> None:
    with pytest.raises(SetupRefusedError) as info:
        policy.open(spec(checkpoint, features, **changes))
    assert all(word in str(info.value) for word in words), str(info.value)
    session = policy.open(spec(checkpoint))
    begin(session)
    answered = ask(policy, session, observe(1))
    assert isinstance(answered, np.ndarray)
    assert answered.shape == (ROWS, COLUMNS)
    session.close()


def test_absent_checkpoint_is_refused_and_the_next_is_loaded(
    policy: PolicyServerPolicy, tmp_path: Path, checkpoint: Path
) -> None:
    with pytest.raises(SetupRefusedError, match="nothing-here"):
        policy.open(spec(tmp_path / "nothing-here"))
    policy.open(spec(checkpoint)).close()
