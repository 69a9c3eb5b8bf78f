"""One checkpoint and one policy for all tests of a file: loading lerobot's PolicyServer takes half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_act import build

    return build(tmp_path_factory.mktemp("act"))


@pytest.fixture(scope="module")
def policy() -> object:
    from async_delta_inference.server_adapter.lerobot import LeRobotPolicy

    return LeRobotPolicy()


@pytest.fixture(scope="module")
def policy_server_policy() -> object:
    from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy

    return PolicyServerPolicy()


@pytest.fixture(scope="module")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the sockets of this file's shared-memory servers."""
    from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE

    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("r")
        path.chmod(0o700)
        patch.setenv(FOLDER_VARIABLE, str(path))
        yield path
