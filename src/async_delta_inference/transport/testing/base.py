"""What the cases of the contract share: the scheme under test, a served peer, a connected transport, bounded waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.link_options import LinkOptions
from async_delta_inference.transport.registry import connect
from async_delta_inference.transport.testing.messages import CONTRACT_POLICY
from async_delta_inference.transport.testing.peer import ServedPeer

__all__ = ["IMPATIENT", "WAIT_S", "ContractBase", "eventually"]

WAIT_S = 60.0
"""Bound of everything that should happen at once: generous, for a loaded machine; no test measures speed."""

IMPATIENT = TransportOptions(
    connect_timeout_s=2.0, setup_timeout_s=60.0, inference_timeout_s=60.0, reconnect_timeout_s=0.5
)


class ContractBase:
    """The scheme under test, and what its protocol has words for."""

    scheme: ClassVar[str]
    """The URI scheme; a test fails if a registered scheme has no subclass."""

    link: ClassVar[LinkOptions] = LinkOptions()
    """What the server is told of its link: the dialect that it is to speak, where the scheme has several."""

    absent_uri: ClassVar[str]
    """A well-formed URI at which nobody listens."""

    carries_episodes: ClassVar[bool] = True
    """Whether the protocol says where an episode begins. If not, a policy is reset once, as the session begins."""

    carries_description: ClassVar[bool] = True
    """Whether the protocol says what the server serves. If not, the client knows an empty text."""

    carries_history: ClassVar[bool] = False
    """Whether an observation may bring what was observed at the steps before. If not, a policy that looks at several is
    refused."""

    carries_prefix: ClassVar[bool] = False
    """Whether an observation may bring the robot's own actions. If not, a policy that wants them is refused."""

    carries_delay: ClassVar[bool] = False
    """Whether an observation may say when its answer is expected to take effect. If not, a policy knows of none."""

    carries_computation: ClassVar[bool] = False
    """Whether the protocol says how the policy computes. If not, the client knows nothing of it."""

    @pytest.fixture
    def peer(self) -> Iterator[ServedPeer]:
        """A server with a scripted policy, killed afterwards."""
        with ServedPeer(self.scheme, link=self.link) as peer:
            yield peer

    @pytest.fixture
    def transport(self, peer: ServedPeer) -> Iterator[Transport]:
        """Connected to the peer, closed afterwards."""
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            yield transport


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` holds, for `WAIT_S` at the most.

    Raises:
        AssertionError: It never held.
    """
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)
