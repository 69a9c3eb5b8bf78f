"""A window of ``torch.profiler`` over whatever the process' threads do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Window", "prepare_profiler", "profile_window"]


@dataclass(frozen=True)
class Window:
    """What was recorded.

    Args:
        path: Chrome's trace, whole.
        start_ns: Of ``time.monotonic_ns()``, once the profiler recorded.
        end_ns: Before it stopped.
    """

    path: Path
    start_ns: int
    end_ns: int

    @property
    def wall_us(self) -> float:
        """How long was recorded."""
        return (self.end_ns - self.start_ns) / 1000


def prepare_profiler(device: torch.device, folder: Path) -> None:
    """The first use loads libraries, which would last longer than a window."""
    profile_window(0.0, device, folder / "first.json")


def profile_window(seconds: float, device: torch.device, path: Path) -> Window:
    """Record for so long; on CUDA what the device does for any thread, elsewhere what this thread does: nothing.

    Args:
        seconds: For how long.
        device: Where the policy is.
        path: For Chrome's trace.
    """
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        start_ns = time.monotonic_ns()
        time.sleep(seconds)
        end_ns = time.monotonic_ns()
    profiler.export_chrome_trace(str(path))
    return Window(path, start_ns, end_ns)
