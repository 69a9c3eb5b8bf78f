"""A policy that looks at several successive observations: what was seen before travels with what is seen now."""

from __future__ import annotations

import pytest

from async_delta_inference.errors import InvalidMessageError, LoanError, SetupRefusedError
from async_delta_inference.transport.messages import Observation
from async_delta_inference.transport.policy import PolicyNeeds
from async_delta_inference.transport.registry import connect
from async_delta_inference.transport.testing.base import IMPATIENT, WAIT_S, ContractBase
from async_delta_inference.transport.testing.messages import (
    CONTRACT_POLICY,
    contract_observation,
    expect_answer,
    fill_contract_observation,
)
from async_delta_inference.transport.testing.peer import ServedPeer
from async_delta_inference.transport.testing.policy import DESCRIPTION

__all__ = ["HistoryCases"]

STEPS = 3


class HistoryCases(ContractBase):
    """Every observation brings the two before it, or the policy is refused by name."""

    def test_history_travels_or_is_refused(self, peer: ServedPeer) -> None:
        peer.ask_for(PolicyNeeds(DESCRIPTION, n_obs_steps=STEPS))
        if not self.carries_history:
            with pytest.raises(SetupRefusedError, match=f"{DESCRIPTION} looks at {STEPS} successive"):
                connect(peer.uri, CONTRACT_POLICY, IMPATIENT)
            return
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            assert transport.n_obs_steps == STEPS
            for timestep in range(5, 60, 5):
                loaned = timestep % 10 == 0
                observation = (
                    transport.loan_observation() if loaned else Observation.empty(CONTRACT_POLICY.features, STEPS)
                )
                _fill(observation, timestep)
                transport.send_observation(observation)
                if not loaned:  # Nothing of the caller's own is kept.
                    observation.history[0].state[:] = 99
                expect_answer(transport.receive_actions(WAIT_S), timestep)
            with pytest.raises(InvalidMessageError, match="history must have 2, got 0"):
                transport.send_observation(contract_observation(60))
        (session,) = peer.sessions()
        assert session.histories == [[timestep - 2, timestep - 1] for timestep in range(5, 60, 5)]

    def test_history_of_a_loan_is_filled_in_place(self, peer: ServedPeer) -> None:
        if not self.carries_history:
            return
        peer.ask_for(PolicyNeeds(DESCRIPTION, n_obs_steps=STEPS))
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            loan = transport.loan_observation()
            _fill(loan, 5)
            mine = loan.history
            loan.history = tuple(past.copy() for past in mine)
            with pytest.raises(LoanError, match="filled in place"):
                transport.send_observation(loan)
            loan.history = mine
            transport.send_observation(loan)
            expect_answer(transport.receive_actions(WAIT_S), 5)
            with pytest.raises(ValueError, match="read-only"):
                mine[0].state[:] = 0


def _fill(observation: Observation, timestep: int) -> None:
    fill_contract_observation(observation, timestep)
    for i, past in enumerate(observation.history):
        fill_contract_observation(Observation(past.images, past.state), timestep - len(observation.history) + i)
