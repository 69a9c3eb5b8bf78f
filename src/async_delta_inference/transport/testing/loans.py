"""Memory that a transport lends: filled in place, sent once, read-only afterwards."""

from __future__ import annotations

import pytest

from async_delta_inference.errors import InvalidMessageError, LoanError, TransportClosed
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.messages import Observation
from async_delta_inference.transport.testing.base import WAIT_S, ContractBase
from async_delta_inference.transport.testing.messages import (
    CONTRACT_POLICY,
    contract_observation,
    expect_answer,
    fill_contract_observation,
)

__all__ = ["LoanCases"]


class LoanCases(ContractBase):
    """One session that lends."""

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
        loan.must_go, loan.episode, loan.inference_delay = False, 3, 2
        transport.return_loan(loan)
        fresh = transport.loan_observation()
        assert (fresh.timestep, fresh.task, fresh.must_go, fresh.episode) == (0, "", True, 0)
        assert fresh.inference_delay is None
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


def _assert_read_only(observation: Observation) -> None:
    with pytest.raises(ValueError, match="read-only"):
        observation.state[...] = 0
    for image in observation.images.values():
        with pytest.raises(ValueError, match="read-only"):
            image[...] = 0
