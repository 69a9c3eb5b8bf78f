"""The transport that shows its answers when a test says."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from async_delta_inference.errors import PolicyError, TransportClosed, TransportTimeout
from async_delta_inference.transport import Observation, TransportOptions
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    ScriptedTransport,
    contract_observation,
    eventually,
    expect_answer,
    timestep_policy,
)


def connected(transport: ScriptedTransport) -> ScriptedTransport:
    transport.connect(CONTRACT_POLICY)
    return transport


def test_answer_shows_after_so_many_polls() -> None:
    with connected(ScriptedTransport(ScriptedPolicy(), polls=2)) as transport:
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(0.0) is None
        transport.send_observation(contract_observation(1))
        assert transport.receive_actions(0.0) is None
        expect_answer(transport.receive_actions(0.0), 0)
        expect_answer(transport.receive_actions(0.0), 1)
        assert transport.receive_actions(0.0) is None


def test_answer_shows_to_whoever_waits() -> None:
    with connected(ScriptedTransport(ScriptedPolicy(), lambda observation: 10**6)) as transport:
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(0.0) is None
        expect_answer(transport.receive_actions(WAIT_S), 0)


def test_answer_shows_when_it_is_ready() -> None:
    moment = threading.Event()
    with connected(ScriptedTransport(ScriptedPolicy(), ready=lambda observation: moment.is_set())) as transport:
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(0.05) is None
        threading.Timer(0.05, moment.set).start()
        expect_answer(transport.receive_actions(WAIT_S), 0)


def test_what_is_sent_is_recorded_as_it_was() -> None:
    with connected(ScriptedTransport(ScriptedPolicy())) as transport:
        observation = contract_observation(3)
        transport.send_observation(observation)
        observation.state[:] = -1
        assert [(sent.timestep, sent.state[0]) for sent in transport.sent] == [(3, 3.0)]
        assert transport.spec == CONTRACT_POLICY


def test_errors_of_the_policy_and_of_the_script() -> None:
    def policy(observation: Observation) -> np.ndarray:
        raise PolicyError("it broke")

    with connected(ScriptedTransport(policy)) as transport:
        transport.errors.append(PolicyError("scripted", 7))
        transport.send_observation(contract_observation(0))
        with pytest.raises(PolicyError, match="scripted"):
            transport.receive_actions(0.0)
        with pytest.raises(PolicyError, match="it broke") as info:
            transport.receive_actions(0.0)
        assert info.value.timestep == 0


def test_observation_that_is_not_answered_is_not_due() -> None:
    answer = timestep_policy(rows=2, width=3)
    options = TransportOptions(inference_timeout_s=0.1)
    with connected(ScriptedTransport(lambda o: None if o.timestep == 0 else answer(o), options=options)) as transport:
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(0.3) is None
        transport.send_observation(contract_observation(1))
        chunk = transport.receive_actions(WAIT_S)
        assert chunk is not None
        assert chunk.actions.tolist() == [[1, 1, 0], [2, 1, 0]]


def test_silence_is_noticed_but_not_while_the_server_is_away() -> None:
    with connected(ScriptedTransport(ScriptedPolicy(), options=TransportOptions(inference_timeout_s=0.1))) as transport:
        transport.send_observation(contract_observation(0))
        transport.away = True
        assert transport.receive_actions(0.3) is None
        transport.silent = True
        transport.come_back()
        with pytest.raises(TransportTimeout):
            transport.receive_actions(WAIT_S)


def test_close_ends_a_wait_and_the_server() -> None:
    transport = connected(ScriptedTransport(ScriptedPolicy()))
    threading.Timer(0.05, transport.close).start()
    with pytest.raises(TransportClosed):
        transport.receive_actions(10 * WAIT_S)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "inference-loop"])
