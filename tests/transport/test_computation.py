"""How a policy computes: what of it is believed, from a policy and from a peer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from host_parts import LoggedPolicy, ask, enter, running

from async_delta_inference.errors import InvalidMessageError, ProtocolError
from async_delta_inference.transport import ActionChunk, Computation
from async_delta_inference.transport.computation import checked_computation
from async_delta_inference.transport.grpc import greeting, native
from async_delta_inference.transport.mailbox import MailboxSession
from async_delta_inference.transport.shm.shared import handshake
from async_delta_inference.transport.testing import CONTRACT_POLICY, WAIT_S

GOOD: Computation = {"device": "cuda:0", "threads": 2**40, "tf32": True, "scale": 0.5, "driver": None}
BAD: list[Any] = [
    None,
    ["device", "cpu"],
    {"x" * 65: 1},
    {3: "device"},
    {"device": "x" * 257},
    {"device": "\udcff"},
    {"threads": 2**63},
    {"scale": float("nan")},
    {"device": ["cpu"]},
    {"device": {"name": "cpu"}},
    {"device": b"cpu"},
    {f"name {i}": i for i in range(65)},
]


def ready_of_grpc(computation: bytes) -> Any:
    message = native.new_server_message()
    message.ready.n_obs_steps, message.ready.computation = 1, computation
    return native.decode_server(message.SerializeToString())


@pytest.mark.parametrize("said", BAD, ids=lambda said: str(said)[:20])
def test_what_is_no_computation_is_believed_of_nobody(said: Any) -> None:
    with pytest.raises(InvalidMessageError):
        checked_computation(said)
    with pytest.raises(ProtocolError):
        handshake.read_ready({"kind": "ready", "serves": "", "computation": said})
    packed = msgpack.packb(said, unicode_errors="surrogatepass")
    with pytest.raises(ProtocolError):
        greeting.read_ready(ready_of_grpc(packed))


def test_older_servers_say_nothing_over_grpc() -> None:
    found = greeting.read_ready(ready_of_grpc(b""))
    assert isinstance(found, greeting.Ready)
    assert found.computation == {}
    assert checked_computation(GOOD) == GOOD


@pytest.mark.parametrize("says", [lambda: {}["nothing"], lambda: {"device": ["cpu"]}], ids=["raises", "wrong"])
def test_policy_that_cannot_say_it_is_served(says: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Odd(LoggedPolicy):
        def computation(self) -> Mapping[str, Any]:
            found: Mapping[str, Any] = says()
            return found

    with running(Odd()) as host, caplog.at_level(logging.ERROR):
        session = MailboxSession(CONTRACT_POLICY, "one", host.ring)
        enter(host, session)
        needs = session.wait_until_open(WAIT_S)
        assert needs is not None
        assert needs.computation == {}
        assert isinstance(ask(session, 0), ActionChunk)
    assert "the policy cannot say how it computes" in caplog.text
