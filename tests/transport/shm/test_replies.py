"""What comes back: errors that travel, answers that find no room, servers that stop or refuse."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shm_actor import FEATURES, ChecksumPolicy, expected_actions, make_observation, policy_spec, shm_server
from shm_processes import eventually, left_behind
from shm_session import ProbedPolicy, connected, exchange

from async_delta_inference.errors import (
    InvalidMessageError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportTimeout,
)
from async_delta_inference.transport import PolicySession, Server, SessionSpec
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.server import session


def test_error_of_the_policy_travels_and_the_session_goes_on(transport: ShmTransport) -> None:
    transport.send_observation(make_observation(1, task="raise " + "ü" * 2000))
    with pytest.raises(PolicyError, match="RuntimeError: üü") as info:
        transport.receive_actions(30.0)
    assert info.value.timestep == 1
    exchange(transport, 2)


def test_filtered_observation_is_not_waited_for(transport: ShmTransport) -> None:
    transport.send_observation(make_observation(1, task="filter"))
    assert transport.receive_actions(0.5) is None
    assert transport._deadline.answered_timestep == 1
    exchange(transport, 2)


def test_observation_that_is_not_answered_in_time_is_an_error(server: Server) -> None:
    with connected(inference_timeout_s=0.2) as transport:
        transport.send_observation(make_observation(1, task="sleep 0.8"))
        with pytest.raises(TransportTimeout, match="timestep 1"):
            transport.receive_actions(30.0)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.timestep == 1
        exchange(transport, 2)


def test_client_that_stops_reading_is_told_so(transport: ShmTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four slots: four answers are kept, the fifth ends the session, and none of the four is lost."""
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 0.2)
    sent = []
    for timestep in range(5):
        sent.append(make_observation(timestep))
        transport.send_observation(sent[-1])
        eventually(lambda n=timestep: transport._actions_ready.value >= min(n + 1, 4), "answered")  # type: ignore[misc]
    eventually(lambda: transport._attachment.end is not None, "the session ended")
    for observation in sent[:4]:
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tobytes() == expected_actions(observation).tobytes()
    with pytest.raises(PeerGoneError, match="has not read its actions"):
        transport.receive_actions(30.0)
    with pytest.raises(PeerGoneError, match="has not read its actions"):
        transport.send_observation(make_observation(9))


def test_client_that_reads_slowly_loses_nothing(transport: ShmTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room comes by half rings, here after three chunks: it takes longer than the server waits for a silent client."""
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 2.0)
    sent = []
    for timestep in range(5):
        sent.append(make_observation(timestep))
        transport.send_observation(sent[-1])
        eventually(
            lambda n=timestep: transport._actions_ready.value >= min(n + 1, 4),  # type: ignore[misc]
            "answered, as far as there is room",
        )
    for observation in sent:
        time.sleep(0.8)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tobytes() == expected_actions(observation).tobytes()


@pytest.mark.parametrize("fault", [{"timestep": 1.5}, {"episode": 1.5}, {"timestamp_s": 10**400}, {"task": "\ud800"}])
@pytest.mark.parametrize("loaned", [False, True])
def test_scalar_that_cannot_be_sent_costs_no_slot(transport: ShmTransport, fault: dict[str, Any], loaned: bool) -> None:
    for _ in range(2 * len(transport._slots)):
        observation = transport.loan_observation() if loaned else make_observation(1)
        for name, value in fault.items():
            setattr(observation, name, value)
        with pytest.raises(InvalidMessageError):
            transport.send_observation(observation)
        if loaned:
            transport.return_loan(observation)
    assert sorted(transport._writer._mine) == list(range(len(transport._slots)))
    exchange(transport, 1)


@pytest.mark.parametrize("owner", ["_store", "_ready"])
def test_interrupt_in_the_middle_of_a_send_ends_the_session(transport: ShmTransport, owner: str) -> None:
    """Half of a publication may be done: going on could hand the same slot out twice."""

    class Interrupting:
        value = 1

        def __call__(self, *_: object) -> None:
            raise KeyboardInterrupt

        release = acquire = __call__

    transport.send_observation(make_observation(1, task="sleep 0.3"))
    setattr(transport._writer, owner, Interrupting())
    with pytest.raises(KeyboardInterrupt):
        transport.send_observation(make_observation(2))
    for use in (lambda: transport.send_observation(make_observation(3)), transport.loan_observation):
        with pytest.raises(ProtocolError, match="interrupted"):
            use()
    transport.close()
    with connected() as second:
        exchange(second, 1)


def test_timestamp_that_is_not_finite_is_refused(transport: ShmTransport) -> None:
    observation = make_observation(1)
    observation.timestamp_s = float("nan")
    with pytest.raises(InvalidMessageError, match="timestamp_s"):
        transport.send_observation(observation)
    exchange(transport, 1)


def test_server_that_is_stopped_says_so(shm_folder: Path, policy: ProbedPolicy) -> None:
    server = shm_server("here", policy)
    server.start()
    with connected() as transport:
        exchange(transport, 1)
        server.stop()
        server.stop()
        with pytest.raises(PeerGoneError, match="stopped"):
            transport.receive_actions(30.0)
    assert left_behind(shm_folder) == []


def test_server_that_is_stopped_while_it_loads_says_so(shm_folder: Path, policy: ProbedPolicy) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def load(spec: SessionSpec) -> PolicySession:
        loading.set()
        loaded.wait(60)
        return ChecksumPolicy.open(policy, spec)

    policy.open = load  # type: ignore[method-assign]
    server = shm_server("here", policy)
    server.start()
    stopper = threading.Thread(target=lambda: (loading.wait(60), server.stop()))
    stopper.start()
    with ShmTransport("here") as transport, pytest.raises(PeerGoneError, match="stopped"):
        transport.connect(policy_spec())
    loaded.set()
    stopper.join()
    assert left_behind(shm_folder) == []


def test_policy_that_exits_ends_nothing(server: Server, policy: ProbedPolicy) -> None:
    """A policy's code may call sys.exit: the thread that serves all clients must not end with it."""
    load = policy.open

    def leave(*_: object) -> None:
        sys.exit("enough")

    policy.open = leave  # type: ignore[method-assign]
    with ShmTransport("here") as transport, pytest.raises(SetupRefusedError, match="enough"):
        transport.connect(policy_spec())
    policy.open, policy.probe = load, leave  # type: ignore[method-assign]
    with connected() as transport:
        transport.send_observation(make_observation(1))
        with pytest.raises(PolicyError, match="enough"):
            transport.receive_actions(30.0)
        policy.probe = lambda observation: None
        exchange(transport, 2)


def test_text_that_utf8_cannot_hold(server: Server, policy: ProbedPolicy) -> None:
    """Names of files are bytes: in a policy's path it is the caller's mistake, in a reason it is spelled out."""
    with ShmTransport("here") as transport, pytest.raises(InvalidMessageError, match="UTF-8"):
        transport.connect(SessionSpec("act", "\udcff", 1, FEATURES, 1))

    def refuse(spec: SessionSpec) -> None:
        raise RuntimeError("no file \udcff")

    policy.open = refuse  # type: ignore[method-assign]
    with ShmTransport("here") as transport, pytest.raises(SetupRefusedError, match=r"no file \?"):
        transport.connect(policy_spec())


def test_server_without_threads_refuses_and_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, ShmTransport("here") as transport:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(SetupRefusedError, match="no thread left"):
            transport.connect(policy_spec())
    with connected() as transport:
        exchange(transport, 1)


def test_policy_that_refuses_is_heard(server: Server, policy: ProbedPolicy) -> None:
    def refuse(spec: SessionSpec) -> None:
        raise RuntimeError("no such checkpoint")

    policy.open = refuse  # type: ignore[method-assign]
    with ShmTransport("here") as transport, pytest.raises(SetupRefusedError, match="no such checkpoint"):
        transport.connect(policy_spec())
