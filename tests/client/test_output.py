"""eval_info.json against lerobot-eval's own aggregation, and the figures beside it."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_delta_inference.client import SimClientConfig
from async_delta_inference.client.delay_trace import read_delay_trace, write_delay_trace
from async_delta_inference.client.output import (
    async_figures,
    default_output_dir,
    eval_info,
    success_interval,
    write_eval_info,
)
from async_delta_inference.client.results import ChunkRecord, EpisodeResult, EvaluationResult
from async_delta_inference.client.table import result_table
from async_delta_inference.errors import ConfigError


def episode(group: str, task_id: int, index: int, rewards: list[float], success: bool, **fields: Any) -> EpisodeResult:
    return EpisodeResult(
        group, task_id, index, 1000 + index, None, success=success, rewards=np.array(rewards), **fields
    )


@pytest.fixture
def result() -> EvaluationResult:
    chunks = [ChunkRecord(0, 0, 10, 0, 0, 0, 0.1), ChunkRecord(5, 8, 10, 3, 2, 2, 0.3)]
    episodes = [
        episode("spatial", 0, 0, [0.0, 0.5, 1.0], True, chunks=chunks, stepping_s=1.5, starved_steps=2),
        episode("spatial", 0, 1, [0.0, 0.25], False, stepping_s=1.0),
        episode("spatial", 3, 0, [1.0], True, stepping_s=0.5),
        episode("goal", 1, 0, [0.0, 0.0], False, stepping_s=1.0, late_chunks=1),
    ]
    return EvaluationResult(episodes=episodes, fps=20.0, eval_s=8.0)


def test_schema_and_aggregates_are_lerobot_evals(result: EvaluationResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """lerobot's own eval_policy_all, with the rollouts replaced by the episodes above."""
    from lerobot.scripts import lerobot_eval

    class Env:
        def __init__(self, key: tuple[str, int]) -> None:
            self.key = key

        def close(self) -> None:
            pass

    class Policy:
        training = False

        def eval(self) -> None:
            pass

        def train(self, mode: bool) -> None:
            pass

    def eval_one(env: Env, **_: Any) -> dict[str, Any]:
        episodes = result.by_task()[env.key]
        return {
            "sum_rewards": [float(np.sum(e.rewards)) for e in episodes],
            "max_rewards": [float(np.max(e.rewards)) for e in episodes],
            "successes": [e.success for e in episodes],
            "video_paths": [],
            "predicted_video_paths": [],
        }

    monkeypatch.setattr(lerobot_eval, "eval_one", eval_one)
    envs: dict[str, dict[int, Any]] = {}
    for group, task_id in result.by_task():
        envs.setdefault(group, {})[task_id] = Env((group, task_id))
    nothing = dict.fromkeys(("env_preprocessor", "env_postprocessor", "preprocessor", "postprocessor"))
    expected = lerobot_eval.eval_policy_all(envs, Policy(), n_episodes=2, **nothing)

    ours = eval_info(result)
    for task in ours["per_task"]:
        del task["async"]
    del ours["overall"]["async"]
    for timing in ("eval_s", "eval_ep_s"):
        del ours["overall"][timing], expected["overall"][timing]
    assert ours == expected


def test_figures(result: EvaluationResult) -> None:
    figures = async_figures(result.episodes)
    assert figures["chunks"] == 2
    assert figures["asynchronous_chunks"] == 1
    assert figures["starved_steps"] == 2
    assert figures["late_chunks"] == 1
    assert figures["mean_length"] == 2.0
    assert figures["control_hz"] == 8 / 4.0
    assert figures["mean_delay_steps"] == 1.5
    assert figures["latency_p50_s"] == pytest.approx(0.2)


def test_nothing_done_is_not_a_number() -> None:
    figures = async_figures([])
    assert math.isnan(figures["mean_length"])
    assert math.isnan(figures["latency_p99_s"])


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    [([True] * 10, 0.722, 1.0), ([False] * 10, 0.0, 0.278), ([True] * 7 + [False] * 3, 0.397, 0.892)],
)
def test_interval_is_wilsons(successes: list[bool], low: float, high: float) -> None:
    """Against the published formula's values for n = 10."""
    assert success_interval(successes) == pytest.approx((low, high), abs=5e-4)


def test_default_folder_names_day_time_environment_and_policy() -> None:
    class Env:
        type = "pusht"

    config = SimClientConfig(env=Env(), policy_type="act", pretrained_name_or_path="p", actions_per_chunk=1)
    folder = default_output_dir(config).as_posix()
    assert re.fullmatch(r"outputs/eval/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_pusht_act", folder)


def test_file_is_json(result: EvaluationResult, tmp_path: Path) -> None:
    write_eval_info(tmp_path / "eval_info.json", result)
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["pc_success"] == 50.0


def test_trace_is_read_as_it_was_written(result: EvaluationResult, tmp_path: Path) -> None:
    write_delay_trace(tmp_path / "trace.json", result)
    assert read_delay_trace(tmp_path / "trace.json") == (0, 3)
    assert json.loads((tmp_path / "trace.json").read_text())["latency_steps"] == [2, 6]


NO_TRACES = [
    "",
    "[]",
    "{}",
    '{"delay_steps": []}',
    '{"delay_steps": [-1]}',
    '{"delay_steps": [1.5]}',
    '{"delay_steps": 3}',
]


@pytest.mark.parametrize("text", NO_TRACES)
def test_trace_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ConfigError, match="inference_delay_trace"):
        read_delay_trace(tmp_path / "trace.json")


def test_trace_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inference_delay_trace"):
        read_delay_trace(tmp_path / "nothing.json")


def test_table_has_a_row_per_task_and_one_overall(result: EvaluationResult) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result_table(result))
    text = console.export_text()
    for expected in ("spatial/0", "spatial/3", "goal/1", "overall", "50.0 %", "2 (1)"):
        assert expected in text
