"""The contract that both halves of a transport keep, as a test class to subclass, and what it is made of. Needs pytest.

::

    class TestMyContract(TransportContract):
        scheme = "mine"
        absent_uri = "mine://nobody-is-here"
"""

import pytest

# So that a failing assertion says what it compared.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in ("base", "exchange", "lifetime", "loans", "messages", "policies", "sessions")
    )
)

from async_delta_inference.transport.testing.base import WAIT_S, eventually  # noqa: E402
from async_delta_inference.transport.testing.contract import TransportContract  # noqa: E402
from async_delta_inference.transport.testing.messages import (  # noqa: E402
    CONTRACT_POLICY,
    contract_observation,
    expect_answer,
    scripted_actions,
)
from async_delta_inference.transport.testing.peer import ContractClient, ServedPeer  # noqa: E402
from async_delta_inference.transport.testing.policy import ScriptedPolicy  # noqa: E402
from async_delta_inference.transport.testing.scripted import (  # noqa: E402
    ScriptedTransport,
    timestep_policy,
)

__all__ = [
    "CONTRACT_POLICY",
    "WAIT_S",
    "ContractClient",
    "ScriptedPolicy",
    "ScriptedTransport",
    "ServedPeer",
    "TransportContract",
    "contract_observation",
    "eventually",
    "expect_answer",
    "scripted_actions",
    "timestep_policy",
]
