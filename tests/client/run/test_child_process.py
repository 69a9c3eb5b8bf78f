"""When a child is forked, and that a fork finds what a new Python would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from async_delta_inference.client.run.child_process import Child, can_fork, forks_allowed, start_child

WAIT_S = 60.0
TELLS = """
import json, os, signal, sys
print(json.dumps({
    "arguments": sys.argv[1:],
    "session": os.getsid(0) == os.getpid(),
    "variable": os.environ.get("CHILDS_OWN"),
    "working folder on the path": "" in sys.path or os.getcwd() in sys.path,
    "signals": [signal.getsignal(s) is not None and signal.getsignal(s).__class__.__name__ for s in (2, 15, 1, 3)],
    "name": __name__,
}))
os.write(int(os.environ["KEPT"]), b"kept")
print("to the log", file=sys.stderr)
sys.stdin.read()
sys.exit(5)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Child]:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "module_that_tells.py").write_text(TELLS)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.syspath_prepend(modules)

    def start(fork: bool) -> Child:
        read_end, write_end = os.pipe()
        environment = os.environ | {"CHILDS_OWN": "yes", "KEPT": str(write_end)}
        child = start_child("module_that_tells", ["a", "b"], environment, tmp_path / "log", write_end, fork=fork)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as kept:
            assert kept.read(4) == b"kept"
        return child

    return start


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_finds_what_a_new_python_finds(start: Callable[[bool], Child], tmp_path: Path) -> None:
    told = []
    for fork in (False, True):
        child = start(fork)
        assert not child.wait(0.01)
        child.close_stdin()
        child.close_stdin()
        assert child.wait(WAIT_S)
        child.send_signal(9)
        told.append((tmp_path / "log").read_text())
    assert told[0] == told[1]
    found = json.loads(told[1].splitlines()[0])
    assert found["arguments"] == ["a", "b"]
    assert found["session"]
    assert found["variable"] == "yes"
    assert not found["working folder on the path"]
    assert found["name"] == "__main__"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_children_do_not_keep_each_other(start: Callable[[bool], Child]) -> None:
    """Each ends with its own input, in whichever order: none holds the other's open."""
    first, second = start(True), start(True)
    first.close_stdin()
    assert first.wait(WAIT_S)
    assert psutil.pid_exists(second.pid)
    second.close_stdin()
    assert second.wait(WAIT_S)


def test_forks_are_for_programs_that_say_so_and_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert not can_fork("json")
    with forks_allowed():
        assert can_fork("json")
        assert not can_fork("a_package_that_nobody_loaded")
        monkeypatch.setattr(threading, "active_count", lambda: 2)
        assert not can_fork("json")
    assert not can_fork("json")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_is_forked_that_could_not_use_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is, nothing is lost. The number of GPUs is made up, what a fork says of itself is not."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    cuda = SimpleNamespace(device_count=lambda: 1, is_initialized=lambda: False, _is_in_bad_fork=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with forks_allowed():
        assert can_fork("json")
        here = os.getpid()
        cuda._is_in_bad_fork = lambda: os.getpid() != here
        assert not can_fork("json")
        cuda.device_count = lambda: 0
        assert can_fork("json")
        cuda.device_count, cuda.is_initialized = lambda: 1, lambda: True
        assert not can_fork("json")


def test_what_the_command_loads_leaves_forks_their_gpus_and_starts_no_thread() -> None:
    """Or a server could not be forked from it. The GPU is made up; that nothing asks the driver for it is not."""
    program = """
import torch
from async_delta_inference.client.environments.plugins import known_environments
from async_delta_inference.client.run.child_process import can_fork, forks_allowed
torch.cuda._device_count_nvml = lambda: 1
with forks_allowed():
    known_environments("")
    print(can_fork("lerobot.processor"))
    torch._C._cuda_getDeviceCount()
    print(can_fork("lerobot.processor"))
"""
    if not torch.backends.cuda.is_built():
        pytest.skip("this torch was built without CUDA")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\nFalse\n"
