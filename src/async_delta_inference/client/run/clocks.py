"""The clock that the flags ask for, and in the simulated one its delays."""

from __future__ import annotations

from collections.abc import Callable

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.control.clock import Clock, RealtimeClock, SimulatedClock
from async_delta_inference.client.record.delays import RecordedDelays, delay_in_steps

__all__ = ["make_clock"]


def make_clock(
    config: SimClientConfig, fps: float, recorded_delays: RecordedDelays | None, measure_delay: Callable[[], int]
) -> Clock:
    """The clock of one run.

    Args:
        config: Flags.
        fps: Control steps per second.
        recorded_delays: Those of ``--inference_delay_trace``.
        measure_delay: Gives a delay in steps for ``--inference_delay=auto``; not called otherwise.
    """
    if config.clock == "realtime":
        return RealtimeClock(fps)
    if recorded_delays is not None:
        return SimulatedClock(recorded_delays.delays, recorded_delays.by_episode)
    if config.inference_delay_s is not None:
        return SimulatedClock([delay_in_steps(config.inference_delay_s, fps)])
    if config.inference_delay == "auto":
        return SimulatedClock([measure_delay()])
    return SimulatedClock([int(config.inference_delay or 0)])
