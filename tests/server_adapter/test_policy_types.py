"""The compatibility table of docs/design/shm.md: which of PolicyServer's eight types it serves, and serves alike."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_policies import ACTION_DIM, build, features_of

from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.server_adapter.policy_host import PolicyHost
from async_delta_inference.transport import Observation, SessionSpec


@pytest.fixture(scope="module")
def host() -> PolicyHost:
    return PolicyHost()


class Context:
    def peer(self) -> str:
        return "test"


def observe(policy_type: str, timestep: int) -> Observation:
    rng = np.random.default_rng(timestep)
    observation = Observation.empty(features_of(policy_type))
    observation.state[...] = rng.normal(size=8) * 3
    for image in observation.images.values():
        image[...] = rng.integers(0, 256, image.shape, np.uint8)
    observation.timestep, observation.task = timestep, "pick up the soup"
    return observation


def set_up(host: PolicyHost, policy_type: str, folder: Path) -> Any:
    """The host, and a PolicyServer beside it that got the same instructions."""
    features = features_of(policy_type)
    host.set_up(SessionSpec(policy_type, str(build(policy_type, folder)), 10, features, ACTION_DIM))
    module: Any = load_policy_server_module()
    server = module.PolicyServer(module.PolicyServerConfig())
    server.Ready(None, Context())
    server.SendPolicyInstructions(module.services_pb2.PolicySetup(data=host.instructions), Context())
    return server


def upstream_actions(server: Any, policy_type: str, observation: Observation) -> bytes:
    module: Any = load_policy_server_module()
    raw = dict(zip(features_of(policy_type).state_names, observation.state.tolist(), strict=True))
    raw |= {**observation.images, "task": observation.task}
    timed = module.TimedObservation(timestamp=0.0, timestep=observation.timestep, observation=raw, must_go=True)
    return torch.stack([row.get_action() for row in server._predict_action_chunk(timed)]).numpy().tobytes()


@pytest.mark.parametrize("note", ["docs/compatibility.md", "docs/design/shm.md"])
def test_table_names_the_types_of_this_lerobot(note: str) -> None:
    from lerobot.async_inference.constants import SUPPORTED_POLICIES

    lines = (Path(__file__).parents[2] / note).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("| type |", "| policy type |")))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    named = [name.strip() for row in rows for name in row.split("|")[1].split(",")]
    assert sorted(named) == sorted(SUPPORTED_POLICIES)


@pytest.mark.skipif(find_spec("num2words") is None, reason="SmolVLA's processor needs num2words: lerobot[smolvla]")
def test_smolvla_is_bit_equal(host: PolicyHost, tmp_path: Path) -> None:
    """Its flow starts from noise: the same seed before both."""
    server = set_up(host, "smolvla", tmp_path)
    for timestep in range(3):
        observation = observe("smolvla", timestep)
        torch.manual_seed(timestep)
        actions = host.infer(observation)
        torch.manual_seed(timestep)
        assert actions is not None
        assert actions.shape == (10, ACTION_DIM)
        assert actions.tobytes() == upstream_actions(server, "smolvla", observation)


@pytest.mark.parametrize(
    ("policy_type", "package", "message"),
    [
        ("vqbet", None, "non-empty TensorList"),
        ("tdmpc", None, "non-empty TensorList"),
        ("diffusion", "diffusers", None),
    ],
)
def test_types_that_are_broken_upstream_fail_alike(
    host: PolicyHost, tmp_path: Path, policy_type: str, package: str | None, message: str | None
) -> None:
    """PolicyServer never fills the queues of past observations that these look into: every inference fails."""
    if package is not None and find_spec(package) is None:
        pytest.skip(f"{policy_type} needs {package}: lerobot[{policy_type}]")
    server = set_up(host, policy_type, tmp_path)
    observation = observe(policy_type, 1)
    with pytest.raises((RuntimeError, AssertionError), match=message):
        upstream_actions(server, policy_type, observation)
    with pytest.raises((RuntimeError, AssertionError), match=message):
        host.infer(observation)
