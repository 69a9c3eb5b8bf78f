"""`serve`: what it takes and refuses, several addresses for one policy, and what is left when it could not start."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import numpy as np
import pytest

from async_delta_inference.errors import ConfigError, PeerGoneError, PeerUnreachableError
from async_delta_inference.transport import TransportOptions, connect, listen, serve
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
    expect_answer,
)

AT_ONCE = TransportOptions(connect_timeout_s=0.05)


def test_one_policy_at_several_addresses() -> None:
    policy = ScriptedPolicy()
    with serve(policy, "inproc://here", "inproc://there") as server, ExitStack() as stack:
        assert server.uris == ("inproc://here", "inproc://there")
        for client, uri in enumerate(server.uris):
            transport = stack.enter_context(connect(uri, CONTRACT_POLICY))
            transport.send_observation(contract_observation(0, client=client))
            expect_answer(transport.receive_actions(WAIT_S), 0, client)
    assert policy.batches() == [[(0, 0)], [(1, 0)]]
    assert [session.closed for session in policy.sessions()] == [1, 1]


def test_addresses_share_the_seats() -> None:
    with serve(ScriptedPolicy(), "inproc://here", "inproc://there", max_sessions=1) as server:
        with connect(server.uris[0], CONTRACT_POLICY), pytest.raises(ValueError, match="1 sessions"):
            connect(server.uris[1], CONTRACT_POLICY)
        connect(server.uris[1], CONTRACT_POLICY).close()


def test_function_is_listened_for_in_one_line() -> None:
    with (
        listen("inproc://mine", lambda observation: np.ones((1, 3))) as server,
        connect(server.uris[0], CONTRACT_POLICY) as transport,
    ):
        transport.send_observation(contract_observation(0))
        chunk = transport.receive_actions(WAIT_S)
    assert chunk is not None
    assert chunk.actions.tolist() == [[1.0, 1.0, 1.0]]


def test_address_that_is_taken_leaves_nothing_of_the_others() -> None:
    with serve(ScriptedPolicy(), "inproc://taken"):
        with pytest.raises(ConfigError, match="inproc://taken is served already"):
            serve(ScriptedPolicy(), "inproc://free", "inproc://taken")
        with pytest.raises(PeerUnreachableError):
            connect("inproc://free", CONTRACT_POLICY, AT_ONCE)
        connect("inproc://taken", CONTRACT_POLICY).close()  # the one that was there first goes on


def test_stopped_server_is_gone_and_its_address_is_free() -> None:
    server = serve(ScriptedPolicy(), "inproc://mine")
    transport = connect("inproc://mine", CONTRACT_POLICY)
    server.stop()
    server.stop()
    with pytest.raises(PeerGoneError, match="stopped"):
        transport.receive_actions(WAIT_S)
    transport.close()
    with pytest.raises(PeerUnreachableError, match="nobody serves inproc://mine"):
        connect("inproc://mine", CONTRACT_POLICY, AT_ONCE)
    serve(ScriptedPolicy(), "inproc://mine").stop()


def test_waiting_ends_when_another_thread_stops_it() -> None:
    server = serve(ScriptedPolicy(), "inproc://mine")
    waiter = threading.Thread(target=server.wait)
    waiter.start()
    server.stop()
    waiter.join(WAIT_S)
    assert not waiter.is_alive()


def test_client_that_comes_first_waits_for_the_server() -> None:
    connected: list[str] = []

    def come() -> None:
        with connect("inproc://late", CONTRACT_POLICY, TransportOptions(connect_timeout_s=WAIT_S)) as transport:
            connected.append(transport.description)

    client = threading.Thread(target=come)
    client.start()
    with serve(ScriptedPolicy(), "inproc://late"):
        client.join(WAIT_S)
    assert connected == ["the contract's scripted policy"]


@pytest.mark.parametrize(
    ("uris", "options", "said"),
    [
        pytest.param([], {}, "at least one URI", id="no address"),
        pytest.param(["mine"], {}, "not a transport URI", id="no URI"),
        pytest.param(["carrier-pigeon://mine"], {}, "unknown transport 'carrier-pigeon'", id="no such transport"),
        pytest.param(["inproc://mine"], {"max_sessions": 0}, "at least 1", id="no session"),
        pytest.param(["inproc://mine"], {"max_batch": 0}, "at least 1", id="no batch"),
        pytest.param(["inproc://mine"], {"linger_s": -0.1}, "from 0 to 60", id="linger into the past"),
        pytest.param(["inproc://mine"], {"linger_s": float("nan")}, "from 0 to 60", id="linger for no number"),
    ],
)
def test_what_cannot_be_served_is_refused(uris: list[str], options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        serve(ScriptedPolicy(), *uris, **options)


def test_only_a_policy_or_a_function_is_served() -> None:
    with pytest.raises(ConfigError, match="str cannot be served"):
        serve("a checkpoint", "inproc://mine")  # type: ignore[arg-type]
