"""Whether the same seed and actions give the same is tried, and what came of it stands in the results."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_gym import Plain, evaluate_odd, odd

from async_delta_inference.client.run.repeatability import taken_together

COUNT = itertools.count()


def restless(self: Plain) -> Any:
    return {"pixels": self.picture(), "agent_pos": np.array([next(COUNT) % 997, 0], np.float32)}


def ends_by_chance(self: Plain, action: Any) -> Any:
    observation, reward, _, truncated, info = Plain.step(self, action)
    if not hasattr(self, "lasts"):
        self.lasts = 2 + next(COUNT) % 2  # One simulator after the other.
    return observation, reward, self.t >= self.lasts, truncated, info


@pytest.mark.parametrize(
    ("name", "members", "repeatable"),
    [("Same", {}, True), ("Other", {"observe": restless}, False), ("Chance", {"step": ends_by_chance}, False)],
)
def test_it_is_tried_when_asked_for(
    name: str, members: dict[str, Any], repeatable: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, result = evaluate_odd(odd(f"Repeats{name}", **members), tmp_path, check_repeatable=True)
    assert result.repeatable is repeatable
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["async"]["repeatable"] is repeatable
    assert ("not repeatable" in caplog.text) is not repeatable


def test_of_several_simulators_each_has_to_be() -> None:
    assert taken_together([None, True]) is True
    assert taken_together([True, None, False]) is False
    assert taken_together([None]) is None


def test_nobody_says_what_nobody_tried(tmp_path: Path) -> None:
    _, result = evaluate_odd("odd_gym/Plain-v0", tmp_path)
    assert result.repeatable is None
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["async"]["repeatable"] is None
