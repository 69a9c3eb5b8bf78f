"""Many sessions with one server: none sees another's answers, waits longer than its turn, or notices another's end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from async_delta_inference.errors import PolicyError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.registry import connect
from async_delta_inference.transport.testing.base import IMPATIENT, WAIT_S, ContractBase, eventually
from async_delta_inference.transport.testing.messages import CONTRACT_POLICY, contract_observation, expect_answer
from async_delta_inference.transport.testing.peer import ContractClient, ServedPeer

__all__ = ["SessionCases"]

EXCHANGES = 40
"""How many every session makes that runs beside others."""

LEAVING: dict[str, Callable[[ContractClient], None]] = {
    "closes": ContractClient.close,
    "is killed": ContractClient.kill,
}


class SessionCases(ContractBase):
    """Several sessions at once. Clients that are to die have processes of their own."""

    @pytest.mark.parametrize("count", [2, 8])
    def test_sessions_at_once_get_their_own_answers(self, peer: ServedPeer, count: int) -> None:
        errors: list[BaseException] = []

        def run(client: int) -> None:
            try:
                with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
                    together.wait(WAIT_S)
                    for timestep in range(EXCHANGES):
                        transport.send_observation(contract_observation(timestep, client=client))
                        expect_answer(transport.receive_actions(WAIT_S), timestep, client)
            except BaseException as exc:  # noqa: BLE001 - looked at below
                errors.append(exc)
                together.abort()

        together = threading.Barrier(count)
        threads = [threading.Thread(target=run, args=(client,)) for client in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * WAIT_S)
        assert errors == []
        by_client = {session.client: session.timesteps() for session in peer.sessions()}
        assert by_client == {client: list(range(EXCHANGES)) for client in range(count)}

    # Whose turn it is.

    def test_sessions_are_served_in_turn_and_the_newest_of_each(self, peer: ServedPeer) -> None:
        with _connected(peer, 4) as transports:
            peer.hold()
            transports[0].send_observation(contract_observation(0))
            eventually(lambda: peer.seen() == [0])
            for timestep in (1, 2, 3):
                for client in (3, 0, 2, 1):
                    transports[client].send_observation(contract_observation(timestep, client=client))
            eventually(lambda: peer.waiting() == [3, 3, 3, 3])
            peer.release()
            expect_answer(transports[0].receive_actions(WAIT_S), 0)
            for client, transport in enumerate(transports):
                expect_answer(transport.receive_actions(WAIT_S), 3, client)
            # The one that had just been served comes last.
            assert peer.served() == [(0, 0), (1, 3), (2, 3), (3, 3), (0, 3)]

    def test_session_that_never_pauses_keeps_nobody_waiting(self, peer: ServedPeer) -> None:
        with _connected(peer, 3) as transports:
            peer.hold()
            transports[0].send_observation(contract_observation(0))
            eventually(lambda: peer.seen() == [0])
            for client in (1, 2):
                transports[client].send_observation(contract_observation(100, client=client))
            for turn in range(1, 7):
                # The greedy one has its next observation there before anybody's turn ends.
                transports[0].send_observation(contract_observation(turn))
                eventually(lambda turn=turn: turn in peer.waiting() and len(peer.waiting()) == 3)  # type: ignore[misc]
                served = len(peer.served())
                peer.step()
                eventually(lambda served=served: len(peer.served()) == served + 1)  # type: ignore[misc]
                client, _ = peer.served()[-1]
                if client != 0:
                    transports[client].send_observation(contract_observation(100 + turn, client=client))
            assert [client for client, _ in peer.served()] == [0, 1, 2, 0, 1, 2, 0]
            peer.release()

    # Who dies.

    @pytest.mark.parametrize("moment", ["idle", "waiting", "with a loan", "queued", "being answered"])
    def test_death_of_a_client_disturbs_no_other(self, transport: Transport, peer: ServedPeer, moment: str) -> None:
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        with ContractClient(peer.uri, number=1) as victim:
            victim.send(0)
            victim.receive(0)
            if moment == "waiting":
                victim.begin_to_wait()
            elif moment == "with a loan":
                victim.borrow()
            elif moment == "queued":
                peer.hold()
                transport.send_observation(contract_observation(1))
                eventually(lambda: (0, 1) in peer.served())
                victim.send(5)
                eventually(lambda: peer.waiting() == [5])
            elif moment == "being answered":
                peer.hold()
                victim.send(5)
                eventually(lambda: (1, 5) in peer.served())
                transport.send_observation(contract_observation(1))
                eventually(lambda: peer.waiting() == [1])
            victim.kill()
        peer.release()
        if moment not in ("queued", "being answered"):
            transport.send_observation(contract_observation(1))
        for timestep in range(1, 10):
            expect_answer(transport.receive_actions(WAIT_S), timestep)
            transport.send_observation(contract_observation(timestep + 1))
        expect_answer(transport.receive_actions(WAIT_S), 10)
        eventually(lambda: [session.closed for session in peer.sessions()] == [0, 1])

    def test_every_session_is_closed_once(self, peer: ServedPeer) -> None:
        with _connected(peer, 3) as transports:
            transports[1].close()
            eventually(lambda: [session.closed for session in peer.sessions()] == [0, 1, 0])
        eventually(lambda: [session.closed for session in peer.sessions()] == [1, 1, 1])

    # How many there may be.

    @pytest.mark.parametrize("leaves", LEAVING)
    def test_session_too_many_is_refused_until_one_leaves(self, leaves: str) -> None:
        with (
            ServedPeer(self.scheme, link=self.link, max_sessions=2) as peer,
            connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as first,
            ContractClient(peer.uri, number=1) as second,
        ):
            with pytest.raises(SetupRefusedError, match=r"2 sessions.*--max_sessions=3"):
                connect(peer.uri, CONTRACT_POLICY, IMPATIENT)
            first.send_observation(contract_observation(0))
            expect_answer(first.receive_actions(WAIT_S), 0)
            second.send(0)
            second.receive(0)
            LEAVING[leaves](second)
            with _admitted(peer) as third:
                third.send_observation(contract_observation(0, client=2))
                expect_answer(third.receive_actions(WAIT_S), 0, client=2)
                first.send_observation(contract_observation(1))
                expect_answer(first.receive_actions(WAIT_S), 1)

    # Batches.

    def test_batch_holds_one_request_of_each_session(self) -> None:
        with ServedPeer(self.scheme, link=self.link, max_batch=4) as peer, _connected(peer, 5) as transports:
            _hold_with_all_waiting(peer, transports)
            peer.release()
            expect_answer(transports[0].receive_actions(WAIT_S), 0)
            for client, transport in enumerate(transports):
                expect_answer(transport.receive_actions(WAIT_S), 2, client)
            assert peer.batches() == [[(0, 0)], [(1, 2), (2, 2), (3, 2), (4, 2)], [(0, 2)]]

    def test_request_of_a_batch_that_fails_spoils_no_other(self) -> None:
        with ServedPeer(self.scheme, link=self.link, max_batch=4) as peer, _connected(peer, 4) as transports:
            _hold_with_all_waiting(peer, transports)
            peer.fail_next("not this one", client=2)
            peer.misbehave_next("wide", client=3)
            peer.release()
            expect_answer(transports[0].receive_actions(WAIT_S), 0)
            for client in (0, 1):
                expect_answer(transports[client].receive_actions(WAIT_S), 2, client)
            for client in (2, 3):
                with pytest.raises((PolicyError, ProtocolError)):
                    transports[client].receive_actions(WAIT_S)
            assert [len(batch) for batch in peer.batches()] == [1, 4]
            transports[2].send_observation(contract_observation(3, client=2))
            expect_answer(transports[2].receive_actions(WAIT_S), 3, client=2)

    @pytest.mark.parametrize("leaves", LEAVING)
    def test_session_that_leaves_in_mid_batch_spoils_no_other(self, leaves: str) -> None:
        with (
            ServedPeer(self.scheme, link=self.link, max_batch=4) as peer,
            _connected(peer, 3) as transports,
            ContractClient(peer.uri, number=3) as leaver,
        ):
            _hold_with_all_waiting(peer, transports)
            leaver.send(2)
            eventually(lambda: peer.waiting() == [2, 2, 2, 2])
            peer.step()
            eventually(lambda: peer.batches() == [[(0, 0)], [(1, 2), (2, 2), (3, 2), (0, 2)]])
            LEAVING[leaves](leaver)
            peer.release()
            expect_answer(transports[0].receive_actions(WAIT_S), 0)
            for timestep in (2, 3, 4):
                for client, transport in enumerate(transports):
                    expect_answer(transport.receive_actions(WAIT_S), timestep, client)
                    transport.send_observation(contract_observation(timestep + 1, client=client))
            eventually(lambda: [session.closed for session in peer.sessions()] == [0, 0, 0, 1])


@contextmanager
def _connected(peer: ServedPeer, count: int) -> Iterator[list[Transport]]:
    """So many sessions, opened one after the other; they send as client 0, 1, 2 and so on."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(peer.uri, CONTRACT_POLICY, IMPATIENT)) for _ in range(count)]


def _hold_with_all_waiting(peer: ServedPeer, transports: list[Transport]) -> None:
    """Hold the policy in the inference of client 0's timestep 0, while timestep 2 of every client waits."""
    peer.hold()
    transports[0].send_observation(contract_observation(0))
    eventually(lambda: peer.seen() == [0])
    for client, transport in enumerate(transports):
        transport.send_observation(contract_observation(2, client=client))
    eventually(lambda: peer.waiting() == [2] * len(transports))


@contextmanager
def _admitted(peer: ServedPeer) -> Iterator[Transport]:
    """A session as soon as there is a seat for it."""
    with ExitStack() as stack:

        def try_to_connect() -> bool:
            with suppress(SetupRefusedError):
                admitted.append(stack.enter_context(connect(peer.uri, CONTRACT_POLICY, IMPATIENT)))
            return bool(admitted)

        admitted: list[Transport] = []
        eventually(try_to_connect)
        yield admitted[0]
