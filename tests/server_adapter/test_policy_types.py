"""The compatibility table: it names every type, and what LeRobot's own PolicyServer serves right is served alike."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from pusht_policies import KINDS
from small_act import ask, begin, upstream_actions, upstream_server
from small_act import observe as observe_anything
from small_policies import ACTION_DIM, build, features_of

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.lerobot.asking import REFUSED_TYPES
from async_delta_inference.server_adapter.lerobot.noise import seed_of
from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy
from async_delta_inference.transport import Observation, SessionSpec


def observe(policy_type: str, timestep: int) -> Observation:
    observation = observe_anything(timestep, features_of(policy_type))
    observation.timestep, observation.task = timestep, "pick up the soup"
    return observation


def spec_of(policy_type: str, folder: Path) -> SessionSpec:
    return SessionSpec(policy_type, str(build(policy_type, folder)), 10, features_of(policy_type), ACTION_DIM)


def table() -> dict[str, str]:
    lines = (Path(__file__).parents[2] / "docs/compatibility.md").read_text().splitlines()
    start = lines.index(next(line for line in lines if line.startswith("| type |")))
    rows = [line.split("|")[1:-1] for line in takewhile(lambda line: line.startswith("|"), lines[start + 2 :])]
    return {name.strip(): row[1].strip() for row in rows for name in row[0].split(",")}


def test_table_names_the_types_of_this_lerobot_and_what_is_tested() -> None:
    import lerobot.policies  # noqa: F401  # Types are known once it has been imported.
    from lerobot.configs import PreTrainedConfig

    known = {
        name
        for name, config in PreTrainedConfig.get_known_choices().items()
        if config.__module__.startswith("lerobot.policies.")
    }
    assert {name.partition(" ")[0] for name in table()} == known
    assert {name for name, word in table().items() if word == "bit-equal"} == set(KINDS)
    assert {name for name, word in table().items() if word == "refused"} == set(REFUSED_TYPES)


@pytest.mark.parametrize("policy_type", ["act", "smolvla"])
def test_types_that_policy_server_serves_are_bit_equal_to_it(
    policy: LeRobotPolicy, policy_server_policy: PolicyServerPolicy, tmp_path: Path, policy_type: str
) -> None:
    """SmolVLA's flow starts from noise: the same seed before each."""
    if policy_type == "smolvla" and find_spec("num2words") is None:
        pytest.skip("SmolVLA's processor needs num2words: lerobot[smolvla]")
    wanted = spec_of(policy_type, tmp_path)
    ours, hosted, server = policy.open(wanted), policy_server_policy.open(wanted), upstream_server(wanted)
    begin(ours)
    begin(hosted)
    for timestep in range(3):
        observation = observe(policy_type, timestep)
        seed = seed_of(wanted.options.seed, 0, timestep)
        torch.manual_seed(seed)
        expected = upstream_actions(server, observation, wanted.features)
        torch.manual_seed(seed)
        for host, session in ((policy_server_policy, hosted), (policy, ours)):
            actions = ask(host, session, observation)
            assert isinstance(actions, np.ndarray)
            assert actions.shape == (10, ACTION_DIM)
            assert actions.tobytes() == expected.tobytes()
    ours.close()
    hosted.close()


@pytest.mark.parametrize(
    ("policy_type", "package", "message"),
    [("vqbet", None, "non-empty TensorList"), ("diffusion", "diffusers", "AssertionError")],
)
def test_types_that_are_broken_upstream_fail_alike(
    policy_server_policy: PolicyServerPolicy, tmp_path: Path, policy_type: str, package: str | None, message: str
) -> None:
    """PolicyServer never fills the queues of past observations that these look into: every inference fails."""
    if package is not None and find_spec(package) is None:
        pytest.skip(f"{policy_type} needs {package}: lerobot[{policy_type}]")
    wanted = spec_of(policy_type, tmp_path)
    session, server = policy_server_policy.open(wanted), upstream_server(wanted)
    begin(session)
    observation = observe(policy_type, 1)
    with pytest.raises((RuntimeError, AssertionError)) as info:
        upstream_actions(server, observation, wanted.features)
    answer = ask(policy_server_policy, session, observation)
    assert isinstance(answer, PolicyError)
    assert str(answer) == f"{type(info.value).__name__}: {info.value}"
    assert message in str(answer)
    session.close()


def test_type_that_no_chunked_client_can_feed_is_refused_with_the_reason(policy: LeRobotPolicy, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "lingbot_va"}')
    with pytest.raises(SetupRefusedError, match="observation of every executed step"):
        policy.describe(SessionSpec("", str(tmp_path), 1, features_of("act"), 7))
