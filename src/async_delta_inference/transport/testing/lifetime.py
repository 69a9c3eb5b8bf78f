"""How a session begins and ends: closing, a peer that dies or stops, one that is not there, an answer that is late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from async_delta_inference.errors import (
    PeerGoneError,
    PeerUnreachableError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.registry import connect, open_transport
from async_delta_inference.transport.testing.base import IMPATIENT, WAIT_S, ContractBase, eventually
from async_delta_inference.transport.testing.messages import CONTRACT_POLICY, contract_observation, expect_answer
from async_delta_inference.transport.testing.peer import ServedPeer

__all__ = ["LifetimeCases"]


class LifetimeCases(ContractBase):
    """One session at a time, and how it ends."""

    # Closing.

    def test_close_from_another_thread_wakes_the_receiver(self, transport: Transport) -> None:
        raised: list[BaseException] = []

        def receive() -> None:
            try:
                transport.receive_actions(10 * WAIT_S)
            except TransportError as exc:
                raised.append(exc)

        receiver = threading.Thread(target=receive)
        receiver.start()
        transport.close()
        receiver.join(WAIT_S)
        assert not receiver.is_alive()
        assert isinstance(raised[0], TransportClosed)

    def test_close_is_idempotent(self, transport: Transport) -> None:
        transport.close()
        transport.close()
        assert transport.closed

    def test_close_while_an_answer_is_owed(self, transport: Transport, peer: ServedPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        transport.close()
        peer.release()

    def test_use_after_close_is_refused(self, transport: Transport) -> None:
        transport.close()
        for use in _uses(transport):
            with pytest.raises(TransportClosed):
                use()

    def test_use_before_connect_is_refused(self, peer: ServedPeer) -> None:
        with open_transport(peer.uri, IMPATIENT) as transport:
            for use in _uses(transport)[:-1]:
                with pytest.raises(TransportClosed):
                    use()

    def test_second_connect_is_refused(self, transport: Transport) -> None:
        with pytest.raises(TransportClosed):
            transport.connect(CONTRACT_POLICY)

    def test_next_client_is_served(self, peer: ServedPeer) -> None:
        for timestep in (5, 3):  # timesteps may start anew with a new session
            with open_transport(peer.uri, IMPATIENT) as transport:
                transport.connect(CONTRACT_POLICY)
                transport.send_observation(contract_observation(timestep))
                expect_answer(transport.receive_actions(WAIT_S), timestep)

    # The other side.

    def test_death_of_the_peer_while_waiting(self, transport: Transport, peer: ServedPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        peer.kill()
        with pytest.raises(PeerGoneError):
            transport.receive_actions(WAIT_S)
        with pytest.raises(PeerGoneError):
            transport.send_observation(contract_observation(1))
        _expect_nobody(peer.uri)

    def test_death_of_the_peer_while_idle(self, transport: Transport, peer: ServedPeer) -> None:
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        peer.kill()
        with pytest.raises(PeerGoneError):
            transport.receive_actions(WAIT_S)
        _expect_nobody(peer.uri)

    def test_nobody_at_the_address(self) -> None:
        _expect_nobody(self.absent_uri)

    def test_server_that_is_stopped_says_so_to_who_waits(self, transport: Transport, peer: ServedPeer) -> None:
        raised: list[BaseException] = []

        def receive() -> None:
            try:
                transport.receive_actions(10 * WAIT_S)
            except TransportError as exc:
                raised.append(exc)

        receiver = threading.Thread(target=receive)
        receiver.start()
        peer.stop()
        receiver.join(WAIT_S)
        assert not receiver.is_alive()
        assert isinstance(raised[0], PeerGoneError)
        assert "stopped" in str(raised[0])

    # An answer that is late.

    def test_late_answer_is_a_timeout_and_the_session_goes_on(self, peer: ServedPeer) -> None:
        with connect(peer.uri, CONTRACT_POLICY, replace(IMPATIENT, inference_timeout_s=0.3)) as transport:
            peer.hold()
            transport.send_observation(contract_observation(0))
            eventually(lambda: peer.seen() == [0])
            with pytest.raises(TransportTimeout, match=r"timestep 0 within 0\.3 s"):
                transport.receive_actions(WAIT_S)
            peer.release()
            expect_answer(transport.receive_actions(WAIT_S), 0)
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            transport.send_observation(contract_observation(1))
            expect_answer(transport.receive_actions(WAIT_S), 1)

    def test_late_answer_is_a_timeout_for_who_polls(self, peer: ServedPeer) -> None:
        def poll() -> bool:
            try:
                assert transport.receive_actions(0.0) is None
            except TransportTimeout:
                return True
            return False

        with connect(peer.uri, CONTRACT_POLICY, replace(IMPATIENT, inference_timeout_s=0.3)) as transport:
            peer.hold()
            transport.send_observation(contract_observation(0))
            eventually(poll)
            peer.release()


def _expect_nobody(uri: str) -> None:
    """Who comes to an address that nobody serves is told so; after a server that was killed, it may have to tidy."""
    with open_transport(uri, IMPATIENT) as transport, pytest.raises(PeerUnreachableError):
        transport.connect(CONTRACT_POLICY)
    assert transport.closed


def _uses(transport: Transport) -> list[Callable[[], object]]:
    return [
        lambda: transport.send_observation(contract_observation(0)),
        lambda: transport.receive_actions(0.0),
        transport.loan_observation,
        lambda: transport.connect(CONTRACT_POLICY),
    ]
