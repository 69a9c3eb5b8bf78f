"""eval_info.json against lerobot-eval's own aggregation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_result import small_result

from async_delta_inference.client.record.eval_info import eval_info, write_eval_info
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult


@pytest.fixture
def result() -> EvaluationResult:
    return small_result()


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


def test_our_figures_stand_beside_lerobots(result: EvaluationResult) -> None:
    info = eval_info(result)
    overall = info["overall"]
    assert (overall["eval_s"], overall["eval_ep_s"]) == (8.0, 2.0)
    assert overall["async"]["policy"] == "a policy made up"
    assert overall["async"]["spoken"] is None  # not every transport has a choice
    assert overall["async"]["inference_delay_steps"] == [3, 1]
    assert overall["async"]["starved_steps"] == 3
    by_task = {(task["task_group"], task["task_id"]): task["async"] for task in info["per_task"]}
    assert {key: figures["starved_steps"] for key, figures in by_task.items()} == {
        ("spatial", 0): 2,
        ("spatial", 3): 1,
        ("goal", 1): 0,
    }


def test_videos_are_listed_where_there_are_any(result: EvaluationResult) -> None:
    def video_of(episode: EpisodeResult) -> Path | None:
        return None if episode.episode else Path(f"{episode.task_group}_{episode.task_id}.mp4")

    info = eval_info(result, video_of)
    assert [task["metrics"]["video_paths"] for task in info["per_task"]] == [
        ["spatial_0.mp4"],
        ["spatial_3.mp4"],
        ["goal_1.mp4"],
    ]
    assert info["per_group"]["spatial"]["video_paths"] == ["spatial_0.mp4", "spatial_3.mp4"]
    assert info["overall"]["video_paths"] == ["spatial_0.mp4", "spatial_3.mp4", "goal_1.mp4"]


def test_file_is_json(result: EvaluationResult, tmp_path: Path) -> None:
    write_eval_info(tmp_path / "eval_info.json", result)
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["pc_success"] == 50.0
