"""The compatibility table of docs/design/shm.md: which of PolicyServer's eight types it serves, and serves alike."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_act import ask, begin, upstream_actions, upstream_server
from small_act import observe as observe_anything
from small_policies import ACTION_DIM, build, features_of

from async_delta_inference.errors import PolicyError
from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy
from async_delta_inference.server_adapter.policy_server.sessions import DrivenSession
from async_delta_inference.transport import Observation, SessionSpec


def observe(policy_type: str, timestep: int) -> Observation:
    observation = observe_anything(timestep, features_of(policy_type))
    observation.timestep, observation.task = timestep, "pick up the soup"
    return observation


def open_session(policy: PolicyServerPolicy, policy_type: str, folder: Path) -> tuple[DrivenSession, Any]:
    """A session, and a PolicyServer beside it that got the same instructions."""
    features = features_of(policy_type)
    session = policy.open(SessionSpec(policy_type, str(build(policy_type, folder)), 10, features, ACTION_DIM))
    begin(session)
    return session, upstream_server(policy.driven.instructions)


@pytest.mark.parametrize("note", ["docs/compatibility.md", "docs/design/shm.md"])
def test_table_names_the_types_of_this_lerobot(note: str) -> None:
    from lerobot.async_inference.constants import SUPPORTED_POLICIES

    lines = (Path(__file__).parents[2] / note).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("| type |", "| policy type |")))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    named = [name.strip() for row in rows for name in row.split("|")[1].split(",")]
    assert sorted(named) == sorted(SUPPORTED_POLICIES)


@pytest.mark.parametrize("policy_type", ["act", "smolvla"])
def test_types_that_work_are_bit_equal(policy: PolicyServerPolicy, tmp_path: Path, policy_type: str) -> None:
    """SmolVLA's flow starts from noise: the same seed before both."""
    if policy_type == "smolvla" and find_spec("num2words") is None:
        pytest.skip("SmolVLA's processor needs num2words: lerobot[smolvla]")
    session, server = open_session(policy, policy_type, tmp_path)
    for timestep in range(3):
        observation = observe(policy_type, timestep)
        torch.manual_seed(timestep)
        actions = ask(policy, session, observation)
        torch.manual_seed(timestep)
        expected = upstream_actions(server, observation, features_of(policy_type))
        assert isinstance(actions, np.ndarray)
        assert actions.shape == (10, ACTION_DIM)
        assert actions.tobytes() == expected.tobytes()
    session.close()


@pytest.mark.parametrize(
    ("policy_type", "package", "message"),
    [
        ("vqbet", None, "non-empty TensorList"),
        ("tdmpc", None, "non-empty TensorList"),
        ("diffusion", "diffusers", "AssertionError"),
    ],
)
def test_types_that_are_broken_upstream_fail_alike(
    policy: PolicyServerPolicy, tmp_path: Path, policy_type: str, package: str | None, message: str
) -> None:
    """PolicyServer never fills the queues of past observations that these look into: every inference fails."""
    if package is not None and find_spec(package) is None:
        pytest.skip(f"{policy_type} needs {package}: lerobot[{policy_type}]")
    session, server = open_session(policy, policy_type, tmp_path)
    observation = observe(policy_type, 1)
    with pytest.raises((RuntimeError, AssertionError)) as info:
        upstream_actions(server, observation, features_of(policy_type))
    answer = ask(policy, session, observation)
    assert isinstance(answer, PolicyError)
    assert str(answer) == f"{type(info.value).__name__}: {info.value}"
    assert message in str(answer)
    session.close()
