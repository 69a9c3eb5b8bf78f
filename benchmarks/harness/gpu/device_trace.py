"""What a device did, read from a trace of ``torch.profiler``; and that trace, made small enough to be looked at."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.gpu.intervals import Interval, length, overlap

__all__ = ["DeviceTrace", "Event", "read_events", "write_for_viewers"]

Event = dict[str, Any]
"""Of Chrome's trace format."""

_KERNEL, _COPY, _FILL = "kernel", "gpu_memcpy", "gpu_memset"
_TO_DEVICE, _FROM_DEVICE = "HtoD", "DtoH"
_KEPT_ARGUMENTS = ("bytes", "device", "stream")
_MOST_EVENTS = 150_000
"""Of a trace for viewers, which grow slow."""


@dataclass(frozen=True)
class DeviceTrace:
    """When the device computed and when it copied, in us.

    Args:
        kernels: Of every kernel.
        copies_to_device: From the host's memory.
        copies_from_device: To it.
    """

    kernels: list[Interval]
    copies_to_device: list[Interval]
    copies_from_device: list[Interval]

    @classmethod
    def of(cls, events: list[Event]) -> DeviceTrace:
        """From the events of a Chrome trace."""
        spans = [event for event in events if event.get("ph") == "X"]
        copies = [event for event in spans if event.get("cat") == _COPY]
        return cls(
            [_interval(event) for event in spans if event.get("cat") == _KERNEL],
            [_interval(event) for event in copies if _TO_DEVICE in event["name"]],
            [_interval(event) for event in copies if _FROM_DEVICE in event["name"]],
        )

    @property
    def span_us(self) -> float:
        """From the first thing that the device did to the end of the last."""
        everything = [*self.kernels, *self.copies_to_device, *self.copies_from_device]
        return max(end for _, end in everything) - min(start for start, _ in everything) if everything else 0.0

    def busy_share(self, wall_us: float) -> float | None:
        """Share of the time in which at least one kernel ran; None where there was none.

        Args:
            wall_us: How long was looked; the time from the first event to the last counts instead where it is longer.
        """
        return length(self.kernels) / max(wall_us, self.span_us) if self.kernels else None

    def copy_overlap_share(self) -> float | None:
        """Share of the time of copies to the device in which a kernel ran, too; None where nothing was copied."""
        copied_us = length(self.copies_to_device)
        return overlap(self.copies_to_device, self.kernels) / copied_us if copied_us else None


def read_events(path: Path) -> list[Event]:
    """Of a file of ``export_chrome_trace``; a second of small kernels is hundreds of megabytes."""
    # Names of kernels are what compilers made them.
    text = path.read_text(encoding="utf-8", errors="replace")
    events: list[Event] = json.loads(text, strict=False)["traceEvents"]
    return events


def write_for_viewers(events: list[Event], path: Path) -> int:
    """The device's part of a trace, gzipped, for ui.perfetto.dev and chrome://tracing.

    Args:
        events: Of the whole trace.
        path: Ends in ``.json.gz``.

    Returns:
        How many events it has. Of more than 150,000 the first are kept.
    """
    names = [event for event in events if event.get("ph") == "M"]
    spans = [e for e in events if e.get("ph") == "X" and e.get("cat") in (_KERNEL, _COPY, _FILL)]
    spans = sorted(spans, key=lambda event: float(event["ts"]))[:_MOST_EVENTS]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump({"traceEvents": [*names, *map(_slim, spans)], "displayTimeUnit": "ms"}, file)
    return len(spans)


def _slim(event: Event) -> Event:
    kept = {key: value for key, value in event.get("args", {}).items() if key in _KEPT_ARGUMENTS}
    return {key: event[key] for key in ("ph", "cat", "name", "pid", "tid", "ts", "dur") if key in event} | {
        "args": kept
    }


def _interval(event: Event) -> Interval:
    start = float(event["ts"])
    return start, start + float(event.get("dur", 0.0))
