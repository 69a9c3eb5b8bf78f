"""What the server is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from stub_environment import STUB_FEATURES, StubEnvironment

from async_delta_inference.client import SimClientConfig
from async_delta_inference.client.run.session_spec import session_spec
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import SessionSpec


def config(address: str, **flags: str) -> SimClientConfig:
    return SimClientConfig(env=None, actions_per_chunk=8, server_address=address, **flags)


def checkpoint(folder: Path, policy_type: str = "act") -> Path:
    (folder / "config.json").write_text(
        f'{{"type": "{policy_type}", "input_features": {{"observation.images.camera": {{"shape": [3, 4, 4]}}}}}}'
    )
    return folder


@pytest.mark.parametrize(("address", "shared"), [("grpc://127.0.0.1:1", True), ("grpc://gpu.lab:1", False)])
def test_path_of_the_checkpoint_is_absolute_for_a_server_on_this_machine_only(
    tmp_path: Path, address: str, shared: bool
) -> None:
    flags = config(address, policy_type="act", pretrained_name_or_path="model", policy_device="cuda")
    spec = session_spec(flags, [StubEnvironment()], checkpoint(tmp_path))
    assert spec == SessionSpec(
        policy_type="act",
        pretrained_name_or_path=str(tmp_path) if shared else "model",
        actions_per_chunk=8,
        features=STUB_FEATURES,
        action_dim=2,
        device="cuda",
    )


def test_checkpoint_at_hand_is_compared_with_the_environments(tmp_path: Path) -> None:
    flags = config("shm://mine", policy_type="act", pretrained_name_or_path="model")
    with pytest.raises(ConfigError, match="use --policy_type=smolvla"):
        session_spec(flags, [StubEnvironment()], checkpoint(tmp_path, "smolvla"))


def test_no_policy_is_named_where_none_was_given() -> None:
    spec = session_spec(config("shm://mine"), [StubEnvironment()], None)
    assert not spec.names_policy
