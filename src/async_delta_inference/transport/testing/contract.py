"""`TransportContract`: what every transport must do, whatever carries it.

Subclass it as ``class TestMyTransport(TransportContract)`` and give it a ``peer`` fixture and `make_transport`; every
test is then yours. No test of it may be muted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import pytest

from async_delta_inference.errors import (
    InvalidMessageError,
    LoanError,
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
)
from async_delta_inference.transport.client import Transport, TransportOptions
from async_delta_inference.transport.messages import MAX_TASK_BYTES, Observation, SessionSpec
from async_delta_inference.transport.registry import open_transport
from async_delta_inference.transport.testing.peer import (
    CONTRACT_POLICY,
    ContractPeer,
    contract_observation,
    expect_answer,
    fill_contract_observation,
)

__all__ = ["TransportContract"]

WAIT_S = 30.0
"""Bound of everything that should happen at once: generous, for a loaded machine; no test measures speed."""

IMPATIENT = TransportOptions(
    connect_timeout_s=2.0, setup_timeout_s=60.0, inference_timeout_s=60.0, reconnect_timeout_s=0.5
)


class TransportContract:
    """Every transport's tests. Subclasses provide the fixture ``peer`` and set `scheme` and `absent_uri`."""

    scheme: ClassVar[str]
    """The URI scheme under test; a test fails if a registered scheme has no subclass."""

    absent_uri: ClassVar[str]
    """A well-formed URI at which nobody listens."""

    @pytest.fixture
    def transport(self, peer: ContractPeer) -> Iterator[Transport]:
        """Connected to the peer, closed afterwards."""
        with open_transport(peer.uri, IMPATIENT) as transport:
            transport.connect(CONTRACT_POLICY)
            yield transport

    # Exchange.

    def test_answer_belongs_to_observation(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(7))
        expect_answer(transport.receive_actions(WAIT_S), 7)

    def test_chunks_come_in_order_and_none_is_lost(self, transport: Transport) -> None:
        for timestep in range(0, 100, 5):
            transport.send_observation(contract_observation(timestep))
            expect_answer(transport.receive_actions(WAIT_S), timestep)

    def test_chunks_wait_for_a_late_reader(self, transport: Transport, peer: ContractPeer) -> None:
        for timestep in range(3):
            transport.send_observation(contract_observation(timestep))
            eventually(lambda timestep=timestep: peer.seen() == list(range(timestep + 1)))  # type: ignore[misc]
        for timestep in range(3):
            expect_answer(transport.receive_actions(WAIT_S), timestep)

    def test_newest_observation_wins_while_the_server_is_busy(self, transport: Transport, peer: ContractPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        for timestep in (1, 2, 3):
            transport.send_observation(contract_observation(timestep))
        eventually(lambda: peer.pending() == 3)
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        expect_answer(transport.receive_actions(WAIT_S), 3)
        assert peer.seen() == [0, 3]

    def test_sending_never_waits_for_a_busy_server(self, transport: Transport, peer: ContractPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        for timestep in range(1, 200):
            transport.send_observation(contract_observation(timestep))
        eventually(lambda: peer.pending() == 199)
        peer.release()
        last = -1
        while last != 199:
            chunk = transport.receive_actions(WAIT_S)
            assert chunk is not None
            assert chunk.timestep > last
            last = chunk.timestep
            expect_answer(chunk, last)

    def test_chunk_stays_valid(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(0))
        first = transport.receive_actions(WAIT_S)
        for timestep in range(1, 20):
            transport.send_observation(contract_observation(timestep))
            expect_answer(transport.receive_actions(WAIT_S), timestep)
        expect_answer(first, 0)

    def test_buffer_of_the_caller_is_not_retained(self, transport: Transport, peer: ContractPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        observation = contract_observation(4)
        transport.send_observation(observation)
        observation.state[:] = -1
        for image in observation.images.values():
            image[:] = 255
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        expect_answer(transport.receive_actions(WAIT_S), 4)

    def test_arrays_need_not_be_contiguous(self, transport: Transport) -> None:
        observation = contract_observation(9)
        for name, image in observation.images.items():
            observation.images[name] = np.repeat(image, 2, axis=1)[::-1, ::2]
        observation.state = np.repeat(observation.state, 2)[::2]
        transport.send_observation(observation)
        expect_answer(transport.receive_actions(WAIT_S), 9)

    def test_episodes_follow_each_other(self, transport: Transport) -> None:
        for timestep in range(6):
            transport.send_observation(contract_observation(timestep, episode=timestep // 2))
            expect_answer(transport.receive_actions(WAIT_S), timestep)

    def test_filtered_observation_is_no_error(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        same = contract_observation(1, must_go=False)
        same.state[0] = 0.0  # within PolicyServer's distance of 1 of the last one: it drops it
        transport.send_observation(same)
        assert transport.receive_actions(1.0) is None
        transport.send_observation(contract_observation(50))
        expect_answer(transport.receive_actions(WAIT_S), 50)

    @pytest.mark.parametrize("task", ["", "pick up the soup", "ü" * (MAX_TASK_BYTES // 2)])
    def test_any_task_is_carried(self, transport: Transport, task: str) -> None:
        observation = contract_observation(3)
        observation.task = task
        transport.send_observation(observation)
        expect_answer(transport.receive_actions(WAIT_S), 3)

    # Waiting.

    @pytest.mark.parametrize("timeout_s", [0.0, 0.05, -1.0])
    def test_timeout_gives_none_and_loses_nothing(
        self, transport: Transport, peer: ContractPeer, timeout_s: float
    ) -> None:
        assert transport.receive_actions(timeout_s) is None
        peer.hold()
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(timeout_s) is None
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        assert transport.receive_actions(timeout_s) is None

    def test_polling_finds_the_chunk(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(2))
        found = []

        def poll() -> bool:
            chunk = transport.receive_actions(0.0)
            if chunk is not None:
                found.append(chunk)
            return bool(found)

        eventually(poll)
        expect_answer(found[0], 2)

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

    def test_close_while_an_answer_is_owed(self, transport: Transport, peer: ContractPeer) -> None:
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

    def test_use_before_connect_is_refused(self, peer: ContractPeer) -> None:
        with open_transport(peer.uri, IMPATIENT) as transport:
            for use in _uses(transport)[:-1]:
                with pytest.raises(TransportClosed):
                    use()

    def test_second_connect_is_refused(self, transport: Transport) -> None:
        with pytest.raises(TransportClosed):
            transport.connect(CONTRACT_POLICY)

    def test_next_client_is_served(self, peer: ContractPeer) -> None:
        for timestep in (5, 3):  # timesteps may start anew with a new session
            with open_transport(peer.uri, IMPATIENT) as transport:
                transport.connect(CONTRACT_POLICY)
                transport.send_observation(contract_observation(timestep))
                expect_answer(transport.receive_actions(WAIT_S), timestep)

    # The other side.

    def test_death_of_the_peer_while_waiting(self, transport: Transport, peer: ContractPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        peer.kill()
        with pytest.raises(PeerGoneError):
            transport.receive_actions(WAIT_S)
        with pytest.raises(PeerGoneError):
            transport.send_observation(contract_observation(1))

    def test_death_of_the_peer_while_idle(self, transport: Transport, peer: ContractPeer) -> None:
        transport.send_observation(contract_observation(0))
        expect_answer(transport.receive_actions(WAIT_S), 0)
        peer.kill()
        with pytest.raises(PeerGoneError):
            transport.receive_actions(WAIT_S)

    def test_nobody_at_the_address(self) -> None:
        with open_transport(self.absent_uri, IMPATIENT) as transport, pytest.raises(PeerUnreachableError):
            transport.connect(CONTRACT_POLICY)
        assert transport.closed

    def test_policy_type_is_refused(self, peer: ContractPeer) -> None:
        policy = SessionSpec("nonsense", "scripted", 5, CONTRACT_POLICY.features, 3)
        with open_transport(peer.uri, IMPATIENT) as transport, pytest.raises(SetupRefusedError, match="nonsense"):
            transport.connect(policy)

    def test_policy_error_is_raised_and_the_session_goes_on(self, transport: Transport, peer: ContractPeer) -> None:
        peer.fail_next("the policy broke")
        transport.send_observation(contract_observation(0))
        with pytest.raises(PolicyError) as info:
            transport.receive_actions(WAIT_S)
        assert info.value.timestep == 0
        transport.send_observation(contract_observation(1))
        expect_answer(transport.receive_actions(WAIT_S), 1)

    def test_actions_that_are_not_finite_are_an_error(self, transport: Transport, peer: ContractPeer) -> None:
        peer.misbehave_next("nan")
        transport.send_observation(contract_observation(0))
        with pytest.raises((PolicyError, ProtocolError), match="finite"):
            transport.receive_actions(WAIT_S)

    def test_actions_of_another_width_are_an_error(self, transport: Transport, peer: ContractPeer) -> None:
        peer.misbehave_next("wide")
        transport.send_observation(contract_observation(0))
        with pytest.raises((PolicyError, ProtocolError), match="4"):
            transport.receive_actions(WAIT_S)

    # What the caller may not send.

    @pytest.mark.parametrize(
        "fault",
        [
            *("shape", "dtype", "state shape", "state dtype", "missing", "unknown", "list"),
            *("timestep", "episode", "timestamp_s", "task"),
        ],
    )
    def test_observation_that_does_not_fit_is_refused(self, transport: Transport, fault: str) -> None:
        observation = contract_observation(1)
        _spoil(observation, fault)
        with pytest.raises(InvalidMessageError):
            transport.send_observation(observation)
        transport.send_observation(contract_observation(2))
        expect_answer(transport.receive_actions(WAIT_S), 2)

    def test_timesteps_must_not_decrease(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(5))
        with pytest.raises(InvalidMessageError):
            transport.send_observation(contract_observation(4))

    def test_long_task_is_refused(self, transport: Transport) -> None:
        observation = contract_observation(0)
        observation.task = "x" * (MAX_TASK_BYTES + 1)
        with pytest.raises(InvalidMessageError):
            transport.send_observation(observation)

    # Loans.

    def test_loan_is_filled_in_place_and_sent(self, transport: Transport) -> None:
        for timestep in range(0, 40, 4):
            loan = transport.loan_observation()
            loan.check(CONTRACT_POLICY.features)
            fill_contract_observation(loan, timestep)
            transport.send_observation(loan)
            expect_answer(transport.receive_actions(WAIT_S), timestep)

    def test_loan_has_fresh_scalars(self, transport: Transport) -> None:
        loan = transport.loan_observation()
        fill_contract_observation(loan, 6)
        loan.must_go, loan.episode = False, 3
        transport.return_loan(loan)
        fresh = transport.loan_observation()
        assert (fresh.timestep, fresh.task, fresh.must_go, fresh.episode) == (0, "", True, 0)
        transport.return_loan(fresh)

    def test_loan_is_read_only_once_sent(self, transport: Transport) -> None:
        loan = transport.loan_observation()
        fill_contract_observation(loan, 0)
        transport.send_observation(loan)
        _assert_read_only(loan)
        expect_answer(transport.receive_actions(WAIT_S), 0)

    def test_loan_is_sent_once(self, transport: Transport) -> None:
        loan = transport.loan_observation()
        fill_contract_observation(loan, 0)
        transport.send_observation(loan)
        with pytest.raises(LoanError):
            transport.send_observation(loan)
        expect_answer(transport.receive_actions(WAIT_S), 0)
        assert transport.receive_actions(0.0) is None

    def test_loan_that_was_sent_stays_useless(self, transport: Transport) -> None:
        old: list[Observation] = []
        for timestep in range(12):  # More than any backend has slots: their memory is lent again.
            loan = transport.loan_observation()
            for stale in old:
                assert stale is not loan
                _assert_read_only(stale)
                with pytest.raises(LoanError):
                    transport.send_observation(stale)
                with pytest.raises(LoanError):
                    transport.return_loan(stale)
            fill_contract_observation(loan, timestep)
            transport.send_observation(loan)
            expect_answer(transport.receive_actions(WAIT_S), timestep)
            old.append(loan)

    def test_abandoned_loan_is_an_error(self, transport: Transport) -> None:
        transport.loan_observation()
        with pytest.raises(LoanError):
            transport.loan_observation()

    def test_loan_can_be_returned(self, transport: Transport) -> None:
        for _ in range(20):
            loan = transport.loan_observation()
            transport.return_loan(loan)
            _assert_read_only(loan)
            with pytest.raises(LoanError):
                transport.return_loan(loan)
            with pytest.raises(LoanError):
                transport.send_observation(loan)

    def test_own_observation_can_be_sent_while_a_loan_is_out(self, transport: Transport) -> None:
        loan = transport.loan_observation()
        transport.send_observation(contract_observation(1))
        expect_answer(transport.receive_actions(WAIT_S), 1)
        fill_contract_observation(loan, 2)
        transport.send_observation(loan)
        expect_answer(transport.receive_actions(WAIT_S), 2)

    def test_loan_that_does_not_fit_stays_out(self, transport: Transport) -> None:
        loan = transport.loan_observation()
        fill_contract_observation(loan, 0)
        loan.timestep = -1
        with pytest.raises(InvalidMessageError):
            transport.send_observation(loan)
        loan.timestep = 0
        transport.send_observation(loan)
        expect_answer(transport.receive_actions(WAIT_S), 0)

    def test_loan_kept_after_close_is_read_only(self, transport: Transport) -> None:
        loan = transport.loan_observation()
        fill_contract_observation(loan, 3)
        transport.close()
        _assert_read_only(loan)
        assert loan.state[0] == 3  # still mapped: a late read is stale, not a crash
        with pytest.raises(TransportClosed):
            transport.send_observation(loan)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` holds, for `WAIT_S` at the most.

    Raises:
        AssertionError: It never held.
    """
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


def _uses(transport: Transport) -> list[Callable[[], object]]:
    return [
        lambda: transport.send_observation(contract_observation(0)),
        lambda: transport.receive_actions(0.0),
        transport.loan_observation,
        lambda: transport.connect(CONTRACT_POLICY),
    ]


def _assert_read_only(observation: Observation) -> None:
    with pytest.raises(ValueError, match="read-only"):
        observation.state[...] = 0
    for image in observation.images.values():
        with pytest.raises(ValueError, match="read-only"):
            image[...] = 0


def _spoil(observation: Observation, fault: str) -> None:
    front = observation.images["front"]
    if fault == "shape":
        observation.images["front"] = front[:-1]
    elif fault == "dtype":
        observation.images["front"] = front.astype(np.float32)
    elif fault == "state shape":
        observation.state = observation.state[:-1]
    elif fault == "state dtype":
        observation.state = observation.state.astype(np.float64)
    elif fault == "missing":
        del observation.images["front"]
    elif fault == "unknown":
        observation.images["extra"] = front
    elif fault in ("timestep", "episode"):
        setattr(observation, fault, 1.5)
    elif fault == "timestamp_s":
        observation.timestamp_s = float("inf")
    elif fault == "task":
        observation.task = "\ud800"  # a surrogate, which UTF-8 cannot hold
    else:
        observation.images["front"] = front.tolist()
