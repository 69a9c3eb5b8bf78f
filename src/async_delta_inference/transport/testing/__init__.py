"""The contract every transport keeps, as a test class to subclass. Needs pytest."""

from async_delta_inference.transport.testing.contract import TransportContract
from async_delta_inference.transport.testing.peer import (
    CONTRACT_POLICY,
    ContractPeer,
    contract_observation,
    scripted_actions,
)

__all__ = ["CONTRACT_POLICY", "ContractPeer", "TransportContract", "contract_observation", "scripted_actions"]
