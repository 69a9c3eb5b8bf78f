"""When chunks take effect."""

from __future__ import annotations

import pytest

from async_delta_inference.client.control.clock import RealtimeClock, SimulatedClock
from async_delta_inference.errors import ConfigError


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

    monkeypatch.setattr("async_delta_inference.client.control.clock.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("async_delta_inference.client.control.clock.time.sleep", sleep)
    clock = RealtimeClock(10.0)
    clock.start_episode()
    now_s[0] += 0.04
    clock.wait_for_next_step()
    now_s[0] += 0.35  # a step that takes too long is not made up for
    clock.wait_for_next_step()
    now_s[0] += 0.06
    clock.wait_for_next_step()
    assert slept_s == pytest.approx([0.06, 0.04])
