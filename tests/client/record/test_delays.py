"""Inference delays in steps, and the file that records them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_result import small_result

from async_delta_inference.client.record.delays import (
    RecordedDelays,
    delay_in_steps,
    read_recorded_delays,
    write_recorded_delays,
)
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
def test_delay_is_the_fewest_steps_that_are_not_shorter_than_the_seconds(delay_s: float, fps: float) -> None:
    """But for the billionth of a step that the rounding of binary fractions may cost."""
    steps = delay_in_steps(delay_s, fps)
    assert steps >= delay_s * fps - 1e-9
    assert steps - 1 < delay_s * fps


def test_delays_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_recorded_delays(tmp_path / "delays.json", small_result())
    delays = read_recorded_delays(tmp_path / "delays.json")
    assert delays == RecordedDelays((0, 3, 4), {("spatial", 0, 0): (0, 3), ("spatial", 0, 1): (4,)})
    assert json.loads((tmp_path / "delays.json").read_text()) == {
        "fps": 20.0,
        "episodes": [
            {"task_group": group, "task_id": task_id, "episode": index, "requests": requests}
            for group, task_id, index, requests in [
                ("spatial", 0, 0, 2),
                ("spatial", 0, 1, 1),
                ("spatial", 3, 0, 0),
                ("goal", 1, 0, 0),
            ]
        ],
        "delay_steps": [0, 3, 4],
        "latency_s": [0.1, 0.3, None],
        "latency_steps": [2, 6, None],
    }


NO_DELAYS = [
    "",
    "[]",
    "{}",
    '{"delay_steps": []}',
    '{"delay_steps": [-1]}',
    '{"delay_steps": [1.5]}',
    '{"delay_steps": 3}',
    '{"delay_steps": [3], "episodes": [7]}',
    '{"delay_steps": [3], "episodes": [{"task_group": "a", "task_id": 0, "episode": 0, "requests": "many"}]}',
]


@pytest.mark.parametrize("text", NO_DELAYS)
def test_file_without_delays_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "delays.json").write_text(text)
    with pytest.raises(ConfigError, match="inference_delay_trace"):
        read_recorded_delays(tmp_path / "delays.json")


def test_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inference_delay_trace"):
        read_recorded_delays(tmp_path / "nothing.json")
