"""The clock that the flags ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from async_delta_inference.client import SimClientConfig
from async_delta_inference.client.control.clock import RealtimeClock
from async_delta_inference.client.record.delays import RecordedDelays
from async_delta_inference.client.run.clocks import make_clock


def config(**flags: Any) -> SimClientConfig:
    return SimClientConfig(env=None, actions_per_chunk=8, **flags)


def never() -> int:
    raise AssertionError("measured though it was not asked for")


def test_realtime_is_the_default() -> None:
    clock = make_clock(config(), 20.0, None, never)
    assert isinstance(clock, RealtimeClock)
    assert clock.delays == ()


@pytest.mark.parametrize(
    ("flags", "delays"),
    [
        ({"inference_delay": "4"}, (4,)),
        ({"inference_delay": 0}, (0,)),
        ({"inference_delay_s": 0.12}, (3,)),
        ({"inference_delay_trace": Path("delays.json")}, (2, 0, 7)),
    ],
)
def test_simulated_delays_are_those_of_the_flag(flags: dict[str, Any], delays: tuple[int, ...]) -> None:
    recorded = RecordedDelays((2, 0, 7), {}) if "inference_delay_trace" in flags else None
    assert make_clock(config(clock="simulated", **flags), 20.0, recorded, never).delays == delays


@pytest.mark.parametrize("flags", [{}, {"inference_delay": "auto"}])
def test_simulated_delay_is_measured_unless_it_is_given(flags: dict[str, Any]) -> None:
    assert make_clock(config(clock="simulated", **flags), 20.0, None, lambda: 9).delays == (9,)
