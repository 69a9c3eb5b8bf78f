"""A policy that wants to be told of the robot's own actions: they travel with the observation."""

from __future__ import annotations

import numpy as np
import pytest

from async_delta_inference.errors import InvalidMessageError, SetupRefusedError
from async_delta_inference.transport.action_prefix import ActionPrefix, PrefixLimits
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.policy import PolicyNeeds
from async_delta_inference.transport.registry import connect
from async_delta_inference.transport.testing.base import IMPATIENT, WAIT_S, ContractBase
from async_delta_inference.transport.testing.messages import CONTRACT_POLICY, contract_observation, expect_answer
from async_delta_inference.transport.testing.peer import ServedPeer
from async_delta_inference.transport.testing.policy import DESCRIPTION

__all__ = ["PrefixCases"]

LIMITS = PrefixLimits(executed=2, committed=3)
WIDTH = CONTRACT_POLICY.action_dim


class PrefixCases(ContractBase):
    """Every observation brings what the robot did and is about to do, or the policy is refused by name."""

    def test_actions_of_the_robot_travel_or_the_policy_is_refused(self, peer: ServedPeer) -> None:
        peer.ask_for(PolicyNeeds(DESCRIPTION, prefix=LIMITS))
        if not self.carries_prefix:
            with pytest.raises(SetupRefusedError, match=f"{DESCRIPTION} wants to be told of the robot's own actions"):
                connect(peer.uri, CONTRACT_POLICY, IMPATIENT)
            return
        sent = []
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            assert transport.prefix == LIMITS
            for timestep, (executed, committed) in enumerate([(2, 3), (0, 0), (1, 3), (2, 0), (0, 1), (2, 3), (0, 0)]):
                observation = contract_observation(timestep)
                observation.prefix = prefix = _prefix(timestep, executed, committed)
                if timestep % 2:
                    loan = transport.loan_observation()
                    loan.state[:], loan.prefix, loan.timestep = observation.state, prefix, timestep
                    for name, image in observation.images.items():
                        loan.images[name][:] = image
                    loan.task, loan.timestamp_s = observation.task, observation.timestamp_s
                    observation = loan
                sent.append([prefix.executed.tolist(), prefix.committed.tolist()])
                transport.send_observation(observation)
                # Nothing of the caller's own is kept.
                observation.prefix = ActionPrefix(prefix.executed + 1, prefix.committed + 1)
                expect_answer(transport.receive_actions(WAIT_S), timestep)
        (session,) = peer.sessions()
        assert session.prefixes == sent

    def test_actions_that_were_not_agreed_are_refused(self, peer: ServedPeer) -> None:
        if not self.carries_prefix:
            return
        peer.ask_for(PolicyNeeds(DESCRIPTION, prefix=LIMITS))
        with connect(peer.uri, CONTRACT_POLICY, IMPATIENT) as transport:
            wide = np.zeros((1, WIDTH + 1), np.float32)
            none = np.zeros((0, WIDTH), np.float32)
            for prefix, why in (
                (None, "give a prefix"),
                (_prefix(0, 3, 0), "n <= 2"),
                (_prefix(0, 0, 4), "n <= 3"),
                (ActionPrefix(wide, none), "must be"),
                (ActionPrefix(none, none.astype(np.float64)), "float32"),
                (ActionPrefix(none, np.full((1, WIDTH), np.nan, np.float32)), "finite"),
            ):
                observation = contract_observation(0)
                observation.prefix = prefix
                with pytest.raises(InvalidMessageError, match=why):
                    transport.send_observation(observation)

    def test_actions_that_nobody_asked_for_are_refused(self, transport: Transport) -> None:
        observation = contract_observation(0)
        observation.prefix = _prefix(0, 0, 1)
        with pytest.raises(InvalidMessageError, match="does not ask"):
            transport.send_observation(observation)


def _prefix(timestep: int, executed: int, committed: int) -> ActionPrefix:
    steps = np.arange(timestep - executed, timestep + committed)
    rows = (steps[:, None] + np.arange(WIDTH) / 8).astype(np.float32)
    return ActionPrefix.of_rows(rows, executed)
