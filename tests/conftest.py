"""What every test leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

GRACE_S = 5.0

# Before anything loads torch or MuJoCo: two threads fight over two cores, and there is no display.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell starts what it puts into the background with SIGINT ignored, and a process hands that down to those it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test measures time: two shared cores make any deadline a matter of luck.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaves a thread, a process or a shared-memory file of this project's."""
    before = _traces()
    yield
    deadline_s = time.monotonic() + GRACE_S
    while (left := _traces() - before) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not left, f"left behind: {sorted(left)}"


def _traces() -> set[str]:
    threads = {f"thread {t.name}" for t in threading.enumerate() if not t.daemon or "transport" in t.name}
    segments = {f"/dev/shm/{path.name}" for path in Path("/dev/shm").glob("*adi*")}
    processes = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "resource_tracker" not in command and "forkserver" not in command:
            processes.add(f"process {process.pid} {command[:200]}")
    return threads | segments | processes
