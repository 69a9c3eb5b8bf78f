"""What every test leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

GRACE_S = 5.0

# Before anything loads torch or MuJoCo: two threads fight over two cores, and there is no display.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell starts what it puts into the background with these two ignored, and a process hands that down to those it
# starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# No test measures time: two shared cores make any deadline a matter of luck.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is found out of environments is not kept for the user."""
    from async_delta_inference.client.environments import proof_cache

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(proof_cache, "cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaves a thread, a process or a shared-memory file of this project's."""
    before = _traces()
    yield
    deadline_s = time.monotonic() + GRACE_S
    left = _traces() - before
    # What stays: other tests' may come and go meanwhile.
    while left and time.monotonic() < deadline_s:
        time.sleep(0.02)
        left &= _traces()
    assert not left, f"left behind: {sorted(left)}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For ``-n auto``: a simulator takes 3 GB, and every worker loads lerobot, as many of its children do."""
    memory_gb = psutil.virtual_memory().total / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gb // 8), 8))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests log text that UTF-8 cannot hold, and a report of a worker has to travel."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def _traces() -> set[str]:
    threads = {f"thread {t.name}" for t in threading.enumerate() if not t.daemon or "transport" in t.name}
    family = psutil.Process().children(recursive=True)
    segments = _segments()
    if segments:
        mapped = _inodes_mapped_by_others({os.getpid(), *(process.pid for process in family)})
        segments = {path: inode for path, inode in segments.items() if inode not in mapped}
    processes = set()
    for process in family:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        # The last one: a process that a test's Ray cluster has ready for the next actor.
        if all(word not in command for word in ("resource_tracker", "forkserver", "ray::IDLE")):
            processes.add(f"process {process.pid} {command[:200]}")
    return threads | segments.keys() | processes


def _segments() -> dict[str, str]:
    """Names and inodes of this project's shared memory and semaphores."""
    found = {}
    for path in Path("/dev/shm").glob("*adi*"):
        with suppress(FileNotFoundError):
            found[str(path)] = str(path.stat().st_ino)
    return found


def _inodes_mapped_by_others(ours: set[int]) -> set[str]:
    """Other tests may run at the same time. By inode: a semaphore is mapped under a name that it had before."""
    inodes = set()
    for process in psutil.process_iter():
        if process.pid not in ours:
            with suppress(psutil.Error, OSError):
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                inodes |= {line.split(maxsplit=5)[4] for line in lines if "/dev/shm/" in line}
    return inodes
