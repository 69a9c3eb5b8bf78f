"""``--stop_when`` in runs of a stub environment whose outcomes are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from control_run import Run
from stub_environment import SOLVED, UNEVENTFUL, StubEnvironment

from async_delta_inference.errors import ConfigError


def run_of(run: Run, success: bool, **flags: Any) -> tuple[int, Path]:
    run.environments = [StubEnvironment(max_episode_steps=3, outcomes={2: SOLVED if success else UNEVENTFUL})]
    client = run.client(**{"n_episodes": 20} | flags)
    return len(client.run().episodes), client.output_dir


def test_a_difference_ends_the_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    _, baseline = run_of(run, success=True)
    count, folder = run_of(run, success=False, stop_when="difference", baseline=baseline)
    assert count == 8  # 2^8 / 9 > 20
    assert "told after 8 pairs" in caplog.text
    # A run that goes on has told it already.
    flags = {"output_dir": folder, "resume": "true"}
    assert run_of(run, success=False, stop_when="difference", baseline=baseline, **flags)[0] == 8
    assert run_of(run, success=False, **flags)[0] == 20


def test_without_a_difference_it_goes_on(run: Run) -> None:
    _, baseline = run_of(run, success=True)
    assert run_of(run, success=True, stop_when="difference", baseline=baseline)[0] == 20


def test_a_narrow_interval_ends_the_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    count, _ = run_of(run, success=True, stop_when="interval<40")
    assert 8 < count < 20
    assert "known to 40 points" in caplog.text
    assert run_of(run, success=True, stop_when="interval<5")[0] == 20


def test_a_baseline_of_other_episodes_is_refused(run: Run) -> None:
    _, baseline = run_of(run, success=True, seed=5)
    with pytest.raises(ConfigError, match="differ in --seed: 5 and 1000"):
        run_of(run, success=False, stop_when="difference", baseline=baseline)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"stop_when": "bored"}, "difference, or interval<N"),
        ({"stop_when": "interval<0"}, "between 0 and 100"),
        ({"stop_when": "difference"}, "needs --baseline"),
        ({"baseline": "somewhere"}, "needs --stop_when=difference"),
    ],
)
def test_what_is_no_rule_is_refused(run: Run, flags: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        run.client(**flags)


@pytest.mark.parametrize("flags", [{"stop_when": "interval<9"}, {"record_dataset": "new"}, {"display_data": True}])
def test_what_follows_one_simulator_is_refused_with_many(run: Run, flags: dict) -> None:
    (name,) = flags
    with pytest.raises(ConfigError, match=f"--{name} follows one simulator"):
        run.client(n_envs="2", **flags)
