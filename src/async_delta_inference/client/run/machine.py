"""``--n_envs=auto``: how many simulators this machine holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from async_delta_inference.client.config import SimClientConfig

__all__ = ["cores", "number_of_simulators", "simulator_bytes"]

_GIB = 2**30
_SIMULATOR_BYTES = {"libero": 3 * _GIB, "libero_plus": 3 * _GIB}
_OTHER_BYTES = 1 * _GIB
_RESERVE_BYTES = 2 * _GIB
"""For a server and its policy."""


def number_of_simulators(config: SimClientConfig, episodes: int) -> int:
    """What the flag asks for, and never more than there are episodes.

    ``auto``: one for each core, as far as memory goes.
    """
    wanted = _automatic(config) if config.n_envs == "auto" else int(config.n_envs or 1)
    return max(1, min(wanted, episodes))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def simulator_bytes(config: SimClientConfig) -> int:
    """Memory that one simulator takes."""
    return _SIMULATOR_BYTES.get(str(getattr(config.env, "type", "")), _OTHER_BYTES)


def _automatic(config: SimClientConfig) -> int:
    available = _available_bytes()
    if available is None:
        return cores()
    return min(cores(), (available - _RESERVE_BYTES) // simulator_bytes(config))


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
