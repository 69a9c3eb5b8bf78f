"""A contract peer on shared memory: lerobot's own PolicyServer with a scripted policy."""

from __future__ import annotations

import os
from collections.abc import Callable

from scripted_policy import ScriptedPolicy


def serve_shm(policy: ScriptedPolicy, name: str, folder: str) -> tuple[str, Callable[[], int | None], object]:
    from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
    from async_delta_inference.server_adapter.policy_host import PolicyHost
    from async_delta_inference.server_adapter.shm_service import ShmService
    from async_delta_inference.transport.shm.rendezvous import FOLDER_VARIABLE

    os.environ[FOLDER_VARIABLE] = folder
    policy.install(load_policy_server_module())
    service = ShmService(PolicyHost(), name)
    service.start()
    return service.uri, service.pending_timestep, service


def serve_policy_host(policy: ScriptedPolicy, name: str, folder: str) -> tuple[str, Callable[[], int | None], object]:
    """The server as users run it: the scripted policy is not installed, it loads the checkpoint that it is told."""
    from async_delta_inference.server_adapter.policy_host import PolicyHost
    from async_delta_inference.server_adapter.shm_service import ShmService
    from async_delta_inference.transport.shm.rendezvous import FOLDER_VARIABLE

    os.environ[FOLDER_VARIABLE] = folder
    service = ShmService(PolicyHost(), name)
    service.start()
    return service.uri, service.pending_timestep, service
