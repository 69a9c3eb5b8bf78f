"""LeRobot's PolicyServer as users serve it, with real checkpoints, in a process that a test can freeze and kill."""

from __future__ import annotations

from async_delta_inference.transport import Policy
from async_delta_inference.transport.testing import ServedPeer

PRELOAD = ("async_delta_inference.server_adapter.policy_server",)


def policy_server_peer(scheme: str, address: str = "") -> ServedPeer:
    return ServedPeer(scheme, address, make_policy=make_policy_server_policy, preload=PRELOAD)


def make_policy_server_policy() -> Policy:
    """Imported where it is served: loading it takes half a minute, which the test's own process can do without."""
    from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy

    return PolicyServerPolicy()
