"""How an embedded server ends: promptly, in every state it can be in, and with nothing left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from async_delta_inference.client.run import embedded_server
from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.transport import open_transport
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE
from async_delta_inference.transport.testing import CONTRACT_POLICY, eventually

END_S = 15.0
"""Bounds a wait for the end of a process that has nothing to wait for; far below what it would do by itself."""

LOADS_FOR_EVER = """
import ctypes, os, pathlib
pathlib.Path(os.environ["LOADING"]).touch()
ctypes.PyDLL(None).sleep(600)  # As a large library does: meanwhile no thread of Python's runs.
"""
SERVES_A_FUNCTION = """
import time
import async_delta_inference.server_adapter.cli as cli
from async_delta_inference.transport import FunctionPolicy

def infer(observation):
    if observation.task == "think":
        open("thinking", "w").close()
        time.sleep(600)
    return [[0.0, 0.0, 0.0]] * 5

cli._make_policy = lambda host: FunctionPolicy(infer)
"""
PARENT = """
import sys
from pathlib import Path
from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.transport import open_transport
from async_delta_inference.transport.testing import CONTRACT_POLICY, contract_observation

server = EmbeddedServer("shm", Path("server.log"))
if sys.argv[1] != "loading":
    transport = open_transport(server.wait_until_ready(60.0))
    transport.connect(CONTRACT_POLICY)
    if sys.argv[1] == "thinking":
        observation = contract_observation(0)
        observation.task = "think"
        transport.send_observation(observation)
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sockets are, for this test alone."""
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return folder


@pytest.fixture
def loads_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says that the child is loading, which it never finishes."""
    (tmp_path / "lerobot").mkdir()
    (tmp_path / "lerobot" / "__init__.py").write_text(LOADS_FOR_EVER)
    monkeypatch.setenv("LOADING", str(tmp_path / "loading"))
    return tmp_path / "loading"


@pytest.fixture
def serves_a_function(tmp_path: Path) -> None:
    """A child that loads no policy of LeRobot's, and is what it always is apart from that."""
    (tmp_path / "sitecustomize.py").write_text(SERVES_A_FUNCTION)


@contextmanager
def killed_at_the_end(pid: int) -> Iterator[psutil.Process]:
    """Whatever a test finds out, the process does not outlive it."""
    process = psutil.Process(pid)
    try:
        yield process
    finally:
        if process.is_running():
            process.kill()


@contextmanager
def parent(state: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A program with an embedded server, and that server."""
    (Path.cwd() / "parent.py").write_text(PARENT)
    arguments = [sys.executable, "parent.py", state]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with killed_at_the_end(int(process.stdout.readline())) as server:
                yield process, server
        finally:
            process.kill()


def assert_ends(process: psutil.Process) -> None:
    _, alive = psutil.wait_procs([process], timeout=END_S)
    assert not alive, f"still {process.status()} {END_S:g} s later"


# While it loads.


@pytest.mark.parametrize("stopped", [False, True])
def test_child_that_still_loads_ends_with_its_killed_parent(loads_for_ever: Path, stopped: bool) -> None:
    with parent("loading") as (process, server):
        eventually(loads_for_ever.exists)
        if stopped:
            server.suspend()
        process.kill()
        assert_ends(server)


@pytest.mark.timeout(60)
def test_child_that_still_loads_is_ended_without_a_deadline(
    loads_for_ever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever presses Ctrl-C does not wait for one."""
    monkeypatch.setattr(embedded_server, "_EXIT_TIMEOUT_S", 3600.0)
    server = EmbeddedServer("shm", tmp_path / "server.log")
    with killed_at_the_end(server.pid):
        eventually(loads_for_ever.exists)
        server.stop()
        assert not psutil.pid_exists(server.pid)


def test_child_whose_parent_is_gone_before_it_looks_ends(loads_for_ever: Path, tmp_path: Path) -> None:
    with EmbeddedServer("shm", tmp_path / "server.log") as server:
        child = psutil.Process(server.pid)
    assert not child.is_running()


# While it serves.


@pytest.mark.usefixtures("serves_a_function")
@pytest.mark.timeout(60)
def test_child_that_was_stopped_tidies_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_server, "_EXIT_TIMEOUT_S", 3600.0)
    server = EmbeddedServer("shm", tmp_path / "server.log")
    with killed_at_the_end(server.pid) as child:
        server.wait_until_ready(60.0)
        assert list(folder.glob("*.sock"))
        child.suspend()
        server.stop()
    assert list(folder.glob("*.sock")) == []


@pytest.mark.usefixtures("serves_a_function")
def test_child_that_was_stopped_and_killed_leaves_no_socket(folder: Path, tmp_path: Path) -> None:
    with EmbeddedServer("shm", tmp_path / "server.log") as server, killed_at_the_end(server.pid) as child:
        with open_transport(server.wait_until_ready(60.0)) as transport:
            transport.connect(CONTRACT_POLICY)
        child.suspend()
        child.kill()
        child.wait(END_S)
        assert list(folder.glob("*.sock"))
    assert list(folder.glob("*.sock")) == []


@pytest.mark.usefixtures("serves_a_function")
@pytest.mark.parametrize("state", ["idle", "stopped", "thinking"])
def test_child_that_serves_ends_with_its_killed_parent(folder: Path, tmp_path: Path, state: str) -> None:
    with parent(state) as (process, server):
        if state == "thinking":
            eventually((tmp_path / "thinking").exists)
        elif state == "stopped":
            server.send_signal(signal.SIGSTOP)
        process.kill()
        assert_ends(server)
    assert list(folder.glob("*.sock")) == []
