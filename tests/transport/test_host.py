"""Who comes and goes, what a session may do wrong, and how a server stops."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from host_parts import BrokenSession, LoggedPolicy, ask, enter, opened, running

from async_delta_inference.errors import PeerGoneError, ProtocolError, SetupRefusedError
from async_delta_inference.transport import (
    ActionChunk,
    Request,
    SessionHost,
    SessionSpec,
)
from async_delta_inference.transport.inbox import ThreadBell
from async_delta_inference.transport.mailbox import MailboxSession
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
    eventually,
)


def stopper(host: SessionHost) -> threading.Thread:
    thread = threading.Thread(target=host.stop)
    thread.start()
    return thread


# What a session does.


@pytest.mark.parametrize("error", [ProtocolError, RuntimeError])
@pytest.mark.parametrize("broken", ["take", "answer"])
def test_session_that_raises_is_ended_and_no_other(broken: str, error: type[Exception]) -> None:
    policy = LoggedPolicy()
    with running(policy, max_batch=4) as host:
        others = [opened(host), opened(host)]
        victim = BrokenSession(host)
        opened(host, victim)
        victim.break_down(broken, error=error)
        victim.post(contract_observation(0))
        with pytest.raises(PeerGoneError, match=f"{broken} broke"):
            victim.next_reply(WAIT_S)
        eventually(lambda: victim.closings == 1)
        for timestep in range(3):
            for session in others:
                assert isinstance(ask(session, timestep), ActionChunk)
        assert policy.calls.count("close") == 1


def test_session_that_raises_alone_is_ended() -> None:
    with running(LoggedPolicy()) as host:
        victim = BrokenSession(host)
        opened(host, victim)
        victim.break_down("take")
        victim.post(contract_observation(0))
        with pytest.raises(PeerGoneError, match="take broke"):
            victim.next_reply(WAIT_S)
        assert isinstance(ask(opened(host), 0), ActionChunk)


@pytest.mark.parametrize("broken", ["opened", "refused"])
def test_session_that_cannot_be_told_how_it_begins_gives_its_seat_back(broken: str) -> None:
    def refuse_the_first(spec: SessionSpec) -> None:
        if broken == "refused" and policy.calls.count("open") == 1:
            raise SetupRefusedError("no")

    policy = LoggedPolicy(open=refuse_the_first)
    with running(policy, max_sessions=1) as host:
        victim = BrokenSession(host, broken)
        enter(host, victim)
        eventually(lambda: victim.closings == 1)
        assert isinstance(ask(opened(host), 0), ActionChunk)
    assert policy.calls.count("close") == (2 if broken == "opened" else 1)


def test_session_that_cannot_be_ended_nor_closed_keeps_nobody_from_it() -> None:
    policy = LoggedPolicy()
    with running(policy) as host:
        opened(host, BrokenSession(host, "end", "close"))
        other = opened(host)
        host.stop()
        with pytest.raises(PeerGoneError, match="the server was stopped"):
            other.next_reply(WAIT_S)
    assert policy.calls.count("close") == 2


# Coming and going.


def test_who_leaves_before_its_turn_is_never_opened() -> None:
    policy = LoggedPolicy()
    host = SessionHost(policy)
    gone, stays = enter(host), enter(host)
    host.leave(gone)
    host.start()
    assert stays.wait_until_open(WAIT_S) is not None
    host.stop()
    assert policy.calls.count("open") == policy.calls.count("close") == 1


def test_who_leaves_while_its_policy_loads_is_closed_once() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(spec: SessionSpec) -> None:
        begun.set()
        go_on.wait(WAIT_S)

    policy = LoggedPolicy(open=load)
    with running(policy) as host:
        session = BrokenSession(host)
        enter(host, session)
        begun.wait(WAIT_S)
        host.leave(session)
        host.leave(session)
        go_on.set()
        eventually(lambda: policy.calls.count("close") == 1)
        assert isinstance(ask(opened(host), 0), ActionChunk)
    assert policy.calls.count("close") == 2
    assert session.closings == 1


def test_who_has_left_unnoticed_makes_room_before_the_next_is_opened() -> None:
    class Lost(MailboxSession):
        lost = False

        def has_left(self) -> bool:
            return self.lost

    policy = LoggedPolicy()
    with running(policy, max_sessions=1) as host:
        lost = Lost(CONTRACT_POLICY, "lost", host.ring)
        opened(host, lost)
        with pytest.raises(SetupRefusedError, match=r"1 sessions.*\(lost\).*--max_sessions=2"):
            enter(host)
        lost.lost = True
        opened(host)
        assert [call for call in policy.calls if call != "describe"] == ["open", "close", "open"]


def test_refusal_names_some_of_those_who_are_there() -> None:
    host = SessionHost(LoggedPolicy(), max_sessions=6)
    for number in range(6):
        enter(host, MailboxSession(CONTRACT_POLICY, f"client {number}", host.ring))
    with pytest.raises(
        SetupRefusedError, match=r"has 6 sessions.*client 0, client 1, client 2, client 3 and 2 more.*=7"
    ):
        enter(host)
    host.stop()


def test_waiting_observations_are_told_by_their_timesteps() -> None:
    host = SessionHost(LoggedPolicy())
    sessions = [enter(host) for _ in range(3)]
    sessions[2].post(contract_observation(4))
    sessions[0].post(contract_observation(9))
    assert host.waiting_timesteps() == [4, 9]
    host.stop()
    assert host.waiting_timesteps() == []


# Stopping.


def test_stop_before_it_has_started() -> None:
    policy = LoggedPolicy()
    host = SessionHost(policy)
    session = enter(host)
    host.stop()
    host.stop()
    with pytest.raises(PeerGoneError, match="stopped"):
        session.wait_until_open(WAIT_S)
    assert "open" not in policy.calls


def test_stop_while_idle_and_twice() -> None:
    policy = LoggedPolicy()
    with running(policy) as host:
        session = opened(host)
        host.stop()
        host.stop()
        with pytest.raises(PeerGoneError, match="the server was stopped"):
            session.next_reply(WAIT_S)
        with pytest.raises(SetupRefusedError, match="stopping"):
            enter(host)
        host.leave(session)
    assert policy.calls.count("close") == 1


def test_bell_that_was_taken_down_is_rung_no_more() -> None:
    """As that of shared memory, which its listener removes once the host has stopped."""

    class Removable(ThreadBell):
        removed = False

        def ring(self) -> None:
            assert not self.removed
            super().ring()

    bell = Removable()
    host = SessionHost(LoggedPolicy())
    host.hang_bell(bell)
    host.start()
    session = opened(host)
    host.stop()
    bell.removed = True
    host.stop()
    host.leave(session)
    host.ring()


def test_stop_while_a_policy_loads() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(spec: SessionSpec) -> None:
        begun.set()
        go_on.wait(WAIT_S)

    policy = LoggedPolicy(open=load)
    with running(policy) as host:
        session = enter(host)
        begun.wait(WAIT_S)
        thread = stopper(host)
        with pytest.raises(PeerGoneError, match="stopped"):
            session.wait_until_open(WAIT_S)
        assert host.is_running
        go_on.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert policy.calls.count("close") == 1


def test_stop_during_an_inference_tells_the_clients_first() -> None:
    policy = ScriptedPolicy()
    with running(policy) as host:
        asks, waits = opened(host), opened(host)
        policy.hold()
        asks.post(contract_observation(0))
        eventually(lambda: len(policy.batches()) == 1)
        waits.post(contract_observation(0, client=1))
        host.stop(timeout_s=0.0)
        assert host.is_running
        for session in (asks, waits):
            with pytest.raises(PeerGoneError, match="the server was stopped"):
                session.next_reply(WAIT_S)
        policy.release()
        host.stop()
        assert not host.is_running
        assert len(policy.batches()) == 1  # nobody is served any more
        assert [record.closed for record in policy.sessions()] == [1, 1]


def test_policy_may_stop_its_own_server() -> None:
    returned = []

    def stop(requests: Sequence[Request]) -> None:
        host.stop()
        returned.append(True)

    policy = LoggedPolicy(infer=stop)
    host = SessionHost(policy)
    host.start()
    session = opened(host)
    session.post(contract_observation(0))
    with pytest.raises(PeerGoneError, match="stopped"):
        session.next_reply(WAIT_S)
    host.stop()
    assert not host.is_running
    assert returned == [True]
    assert policy.calls.count("close") == 1
