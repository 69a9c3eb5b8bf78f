"""When chunks take effect."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_delta_inference.client.clock import RealtimeClock, SimulatedClock, delay_in_steps
from async_delta_inference.errors import ConfigError


@pytest.mark.parametrize(
    ("delay_s", "fps", "steps"),
    [(0.0, 20, 0), (0.001, 20, 1), (0.05, 20, 1), (0.051, 20, 2), (0.15, 20, 3), (0.1, 30, 3), (1.0, 80, 80)],
)
def test_seconds_are_rounded_up_to_steps(delay_s: float, fps: float, steps: int) -> None:
    assert delay_in_steps(delay_s, fps) == steps


@given(st.integers(0, 1000), st.sampled_from([10, 20, 30, 50, 80]))
def test_whole_steps_are_not_rounded_up(steps: int, fps: int) -> None:
    assert delay_in_steps(steps / fps, fps) == steps


@given(st.floats(0, 10), st.floats(1, 100))
def test_delay_is_never_shorter_than_the_seconds(delay_s: float, fps: float) -> None:
    assert delay_in_steps(delay_s, fps) >= math.floor(delay_s * fps)


def test_simulated_delays_are_used_in_order_and_begin_anew() -> None:
    clock = SimulatedClock([2, 0, 5])
    assert [clock.due_step(10) for _ in range(5)] == [12, 10, 15, 12, 10]


@pytest.mark.parametrize("delays", [[], [-1], [1, -1]])
def test_impossible_delays_are_refused(delays: list[int]) -> None:
    with pytest.raises(ConfigError):
        SimulatedClock(delays)


def test_realtime_has_no_due_step() -> None:
    assert RealtimeClock(20).due_step(3) is None


def test_realtime_paces_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still but for the sleeps: what is asked for is counted, not measured."""
    now_s, slept_s = [100.0], []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        now_s[0] += seconds

    monkeypatch.setattr("async_delta_inference.client.clock.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("async_delta_inference.client.clock.time.sleep", sleep)
    clock = RealtimeClock(10.0)
    clock.start_episode()
    now_s[0] += 0.04
    clock.wait_for_next_step()
    now_s[0] += 0.35  # a step that takes too long is not made up for
    clock.wait_for_next_step()
    now_s[0] += 0.06
    clock.wait_for_next_step()
    assert slept_s == pytest.approx([0.06, 0.04])
