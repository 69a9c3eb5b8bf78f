"""CPU time and memory of any process of the user's."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["cpu_ns", "peak_rss_mb", "reset_peak_rss", "rss_mb"]


def cpu_ns(pid: int) -> int:
    """CPU time of a process, user and system, all its threads, ns.

    psutil's figure counts in ticks of 10 ms; the kernel's clock of that process counts in nanoseconds, and its number
    is the complement of the pid (see clock_getcpuclockid(3)).
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def rss_mb(pid: int) -> float:
    """Resident memory now, shared pages included, MB."""
    return _status(pid, "VmRSS")


def peak_rss_mb(pid: int) -> float:
    """Largest resident memory since `reset_peak_rss`, MB."""
    return _status(pid, "VmHWM")


def reset_peak_rss(*pids: int) -> None:
    """Begin anew to look for the peak."""
    for pid in pids:
        # 5: see proc_pid_clear_refs(5).
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"process {pid} (this is {os.getpid()}) has no {name}")
