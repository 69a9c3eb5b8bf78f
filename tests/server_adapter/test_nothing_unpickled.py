"""Nothing that a peer sent is unpickled: PolicyServer's set-up call gets bytes that were made here."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_act import LARGER, ask, begin, observe, spec

from async_delta_inference.errors import PeerGoneError, ProtocolError, SetupRefusedError, TransportError
from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy
from async_delta_inference.transport import connect, serve
from async_delta_inference.transport.shm.shared import handshake, rendezvous
from async_delta_inference.transport.shm.shared.connection import Connection

BOMB = pickle.dumps(os.getpid)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What pickle.loads is given. Whatever else unpickles (pickle.load, torch's Unpickler) fails the test: the
    interpreter's own audit hears it.
    """
    loaded: list[bytes] = []
    elsewhere: list[tuple[object, ...]] = []
    listening, inside = [True], [False]
    loads = pickle.loads

    def record(data: bytes, **kwargs: Any) -> Any:
        loaded.append(data)
        inside[0] = True
        try:
            return loads(data, **kwargs)
        finally:
            inside[0] = False

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "pickle.find_class" and listening[0] and not inside[0]:
            elsewhere.append(arguments)

    sys.addaudithook(audit)  # For the life of the process; it listens until the end of this test.
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "loads", record)
        try:
            yield loaded
        finally:
            listening[0] = False
    assert elsewhere == []
    assert all(type(loads(data)).__name__ == "RemotePolicyConfig" for data in loaded)


def test_nothing_that_a_peer_sent_is_unpickled(
    runtime_folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions honest and hostile over shared memory."""
    policy = PolicyServerPolicy()
    with recorded(monkeypatch) as loaded, serve(policy, "shm://recorded") as server:
        (uri,) = server.uris
        for _ in range(2):
            with connect(uri, spec(checkpoint)) as transport:
                observation = observe(0, task=BOMB.decode("latin-1"))
                image = observation.images["image"] = observation.images["image"].copy()
                image.reshape(-1)[: len(BOMB)] = np.frombuffer(BOMB, np.uint8)
                transport.send_observation(observation)
                assert transport.receive_actions(60.0) is not None
        for packet in (BOMB, b"\x81\xa4kind" + BOMB):
            connection = Connection(rendezvous.connect(rendezvous.socket_path("recorded"), 5.0))
            connection._socket.send(packet)
            with pytest.raises((ProtocolError, PeerGoneError, SetupRefusedError)):
                handshake.check_kind(connection.receive(10.0), "ready")
            connection.close()
        assert loaded == [policy.driven.instructions]
        with pytest.raises(TransportError):
            connect(uri, spec(checkpoint, policy_type=BOMB.decode("latin-1")))
    assert len(loaded) == 2
    assert loaded[-1] == policy.driven.instructions


def test_only_its_own_instructions_are_unpickled(
    policy_server_policy: PolicyServerPolicy, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_server_policy
    with recorded(monkeypatch) as loaded:
        for features in (LARGER, None):
            session = policy.open(spec(checkpoint, **({} if features is None else {"features": features})))
            begin(session)
            for timestep in range(3):
                observed = observe(timestep, *([] if features is None else [features]))
                observed.task = BOMB.decode("latin-1")
                assert isinstance(ask(policy, session, observed), np.ndarray)
            session.close()
    assert loaded == [policy.driven.instructions]
