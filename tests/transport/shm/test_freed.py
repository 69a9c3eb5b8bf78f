"""The end of the interpreter, of a transport, of a session: nothing is kept that was given back."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from shm_actor import shm_server
from shm_processes import ACTOR, Actor, eventually, left_behind
from shm_session import connected, exchange

from async_delta_inference.errors import (
    PeerGoneError,
)
from async_delta_inference.transport import Server
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.client.attachment import Attachment


@pytest.mark.parametrize("waiting", [False, True])
def test_interpreter_that_ends_with_an_open_transport(server: Server, waiting: bool) -> None:
    script = """
from shm_actor import *
import threading
transport = open_transport("shm://here")
transport.connect(policy_spec())
transport.send_observation(make_observation(1))
assert transport.receive_actions(30.0) is not None
loan = transport.loan_observation()
""" + ("threading.Thread(target=transport.receive_actions, args=(60.0,), daemon=True).start()\n" if waiting else "")
    environment = {**os.environ, "PYTHONPATH": str(ACTOR.parent)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    with connected() as transport:
        exchange(transport, 1)


def test_transport_that_is_dropped_frees_what_it_held(server: Server) -> None:
    transport = connected()
    exchange(transport, 1)
    del transport
    gc.collect()
    with connected() as transport:
        exchange(transport, 1)


def test_transport_that_is_finalized_by_its_own_thread(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector runs in any thread, the one that watches the server included."""
    watch, errors = Attachment._watch, []

    def watch_and_dispose(attachment: Attachment) -> None:
        watch(attachment)
        try:
            attachment.dispose()
        except RuntimeError as exc:
            errors.append(exc)

    monkeypatch.setattr(Attachment, "_watch", watch_and_dispose)
    with connected() as transport:
        transport._attachment._connection.shut_down()
        transport._attachment._watcher.join()
    assert errors == []


def test_sessions_leave_no_descriptor_mapping_or_thread(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)  # Whoever keeps the records must not keep the sessions.

    def held() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("adi-"), threading.active_count()

    def session_of_one() -> None:
        with connected() as transport:
            exchange(transport, 1)

    session_of_one()
    eventually(lambda: not server.listeners[0]._connections, "the server is done with it")
    before = held()
    for _ in range(20):
        session_of_one()
    eventually(lambda: not server.listeners[0]._connections, "the server is done with it")
    gc.collect()
    eventually(lambda: held() <= before, f"{held()} comes down to {before}", 10.0)


def test_server_actor_is_not_kept_by_its_fork(shm_folder: Path) -> None:
    server = Actor("serve", "here")
    server.wait_for("ready")
    with connected() as transport:
        exchange(transport, 1)
    assert server.end() == 0
    assert left_behind(shm_folder) == []


def test_sessions_that_a_stopped_server_ended_are_freed(shm_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a session raised, and what a transport keeps of it, must not keep the session's memory mapped."""
    caplog.set_level(logging.DEBUG)
    kept: list[tuple[ShmTransport, Exception]] = []

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("adi-")

    def session_of_one(stopping: Server) -> None:
        transport = connected()
        exchange(transport, 1)
        stopping.stop()
        for _ in range(2):
            with pytest.raises(PeerGoneError, match="stopped") as info:
                transport.receive_actions(30.0)
        transport.close()
        kept.append((transport, info.value.with_traceback(None)))

    before = held()
    for _ in range(10):
        server = shm_server("here")
        server.start()
        session_of_one(server)
    del server
    gc.collect()
    eventually(lambda: held() <= before, f"{held()} comes down to {before}", 10.0)
