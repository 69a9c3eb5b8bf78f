"""How busy the processes of this run kept the cores."""

from __future__ import annotations

import os
import time

import psutil

__all__ = ["Occupancy"]


class Occupancy:
    """Looks at the processor time of this process and all below it, again and again.

    What a process used after the last look that it lived to see is not known, and not counted.
    """

    def __init__(self) -> None:
        self._used_s: dict[int, float] = {}
        self._looks: list[tuple[float, float]] = []

    def look(self) -> None:
        """Note the time, and the processor time used so far, by those that have ended too."""
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._used_s[process.pid] = times.user + times.system
        self._looks.append((time.monotonic(), sum(self._used_s.values())))

    def busy(self, first: int = 0) -> float:
        """Share of all cores, 0 to 1, between look number ``first`` and the last."""
        (start_s, before_s), (end_s, after_s) = self._looks[first], self._looks[-1]
        return (after_s - before_s) / (end_s - start_s) / (os.cpu_count() or 1)
