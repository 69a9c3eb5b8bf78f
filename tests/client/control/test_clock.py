"""When chunks take effect, and what paces the control loop."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_environment import STUB_FEATURES, StubEnvironment

from async_delta_inference.client import EpisodeSpec, RunObserver, SimClientConfig
from async_delta_inference.client.control import clock as clock_module
from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.control.aggregation import aggregate_function
from async_delta_inference.client.control.chunk_source import ChunkSource
from async_delta_inference.client.control.clock import Clock, RealtimeClock, SimulatedClock
from async_delta_inference.client.control.loop import ControlLoop
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import SessionSpec
from async_delta_inference.transport.testing import ScriptedTransport, timestep_policy

EPISODE, OTHER = EpisodeSpec("stub", 0, 3, 1003), EpisodeSpec("stub", 1, 3, 1003)


def test_simulated_delays_are_used_in_order_and_begin_anew() -> None:
    clock = SimulatedClock([2, 0, 5])
    clock.start_episode(EPISODE)
    assert [clock.due_step(10) for _ in range(5)] == [12, 10, 15, 12, 10]
    assert clock.delays == (2, 0, 5)


def test_simulated_delays_follow_from_the_episode_and_not_from_those_before_it() -> None:
    clock = SimulatedClock([2, 0, 5], {EPISODE.key: [7, 8]})
    for spec, expected in ((OTHER, [2, 0]), (EPISODE, [7, 8, 7]), (OTHER, [2]), (EPISODE, [7])):
        clock.start_episode(spec)
        assert [clock.due_step(0) for _ in expected] == expected


@pytest.mark.parametrize("delays", [[], [-1], [1, -1]])
def test_impossible_delays_are_refused(delays: list[int]) -> None:
    with pytest.raises(ConfigError):
        SimulatedClock(delays)


def test_realtime_has_no_due_step() -> None:
    assert RealtimeClock(20).due_step(3) is None


class FakeTime:
    """Stands still but for the sleeps: what is asked for is counted, not measured.

    Args:
        oversleep_s: How much longer every sleep takes than it was asked to.
    """

    def __init__(self, oversleep_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []
        self._oversleep_s = oversleep_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds + self._oversleep_s


def test_realtime_paces_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = FakeTime()
    monkeypatch.setattr(clock_module, "time", now)
    clock = RealtimeClock(10.0)
    clock.start_episode(EPISODE)
    now.now_s += 0.04
    clock.wait_for_next_step()
    now.now_s += 0.35  # a step that takes too long is not made up for
    clock.wait_for_next_step()
    now.now_s += 0.06
    clock.wait_for_next_step()
    assert now.slept_s == pytest.approx([0.06, 0.04])


def test_realtime_keeps_its_rate_though_sleeps_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = FakeTime(oversleep_s=0.01)
    monkeypatch.setattr(clock_module, "time", now)
    clock = RealtimeClock(10.0)
    clock.start_episode(EPISODE)
    for _ in range(20):
        now.now_s += 0.03
        clock.wait_for_next_step()
    assert now.now_s == pytest.approx(100.0 + 20 * 0.1 + 0.01)


@given(st.lists(st.floats(0.0, 0.3), min_size=1, max_size=20))
def test_realtime_step_is_never_shorter_than_its_period(work_s: list[float]) -> None:
    """Whatever the steps take: those that begin in time begin a whole period after the one before, or later."""
    with pytest.MonkeyPatch.context() as patch:
        now = FakeTime()
        patch.setattr(clock_module, "time", now)
        clock = RealtimeClock(10.0)
        clock.start_episode(EPISODE)
        begins_s = [now.now_s]
        for seconds in work_s:
            now.now_s += seconds
            clock.wait_for_next_step()
            begins_s.append(now.now_s)
    lengths_s = [later - earlier for earlier, later in pairwise(begins_s)]
    for length_s, seconds in zip(lengths_s, work_s, strict=True):
        assert length_s == pytest.approx(max(0.1, seconds))


# The control loop's calls.


class Calls(Clock, RunObserver):
    """A clock that remembers what it was asked, between the steps of an environment that it watches."""

    name = "watched"

    def __init__(self, environment: StubEnvironment) -> None:
        self._environment = environment
        self.calls: list[tuple[str, int]] = []

    def _note(self, call: str) -> None:
        self.calls.append((call, len(self._environment.actions[-1])))

    def due_step(self, step: int) -> int:
        self._note("due_step")
        return step

    def start_episode(self, spec: EpisodeSpec) -> None:
        self._note("start_episode")

    def wait_for_next_step(self) -> None:
        self._note("wait_for_next_step")


def test_clock_is_started_after_each_reset_and_waited_for_between_steps(tmp_path: Path) -> None:
    environment = StubEnvironment(max_episode_steps=3)
    clock = Calls(environment)
    config = SimClientConfig(env=None, actions_per_chunk=10, output_dir=tmp_path)
    with ScriptedTransport(timestep_policy(rows=10)) as transport:
        transport.connect(SessionSpec("", "", 10, STUB_FEATURES, 2))
        loop = ControlLoop(
            config.control_options(),
            transport,
            ChunkSource(transport),
            clock,
            ActionQueue(2, aggregate_function("latest_only")),
            RunObserver(),
            lambda: True,
        )
        for episode in range(2):
            loop.run_episode(environment, environment.episode(episode, 1000), "")
    one_episode = [
        ("start_episode", 0),
        ("due_step", 0),
        ("wait_for_next_step", 1),
        ("wait_for_next_step", 2),
        ("wait_for_next_step", 3),
    ]
    assert clock.calls == one_episode * 2
