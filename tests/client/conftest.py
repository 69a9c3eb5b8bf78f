"""A checkpoint and a server for whole evaluations, and runs of stub environments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from control_run import Run
from policy_server_peer import policy_server_peer
from random_act import build_random_act

from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.transport.testing import ServedPeer


@pytest.fixture(scope="session")
def pusht_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ACT for PushT, chunks of 20."""
    from lerobot.envs.configs import PushtEnv

    (environment,) = make_environments(PushtEnv())
    folder = build_random_act(
        tmp_path_factory.mktemp("pusht_act"), environment.features, environment.action_dim, chunk_size=20
    )
    environment.close()
    return folder


@pytest.fixture
def policy_server() -> Iterator[ServedPeer]:
    """lerobot's PolicyServer over gRPC, in a process of its own."""
    with policy_server_peer("grpc") as peer:
        yield peer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Stub environments over a scripted transport."""
    return Run(tmp_path)
