"""The comparison with lerobot-eval: what is run, what counts as different, and where time is charged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.evaluators import OURS, THEIRS, Run, Subject, command_of, differences
from harness.reset_profile import Stopwatch
from versus_lerobot_eval import compare

from async_delta_inference.errors import AsyncDeltaError

FIGURES = {"mean_length": 280.0, "control_hz": 70.0, "latency_p50_s": 0.1, "chunks": 12, "reset_s": 1.5}


def run(evaluator: str, eval_ep_s: float, **fields: Any) -> Run:
    figures = FIGURES if evaluator == OURS else {}
    found = {"successes": [True, False], "sum_rewards": [1.0, 0.0], "figures": figures} | fields
    return Run(evaluator, wall_s=10 * eval_ep_s, cpu_s=5 * eval_ep_s, eval_ep_s=eval_ep_s, **found)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    image, state = {"type": "VISUAL", "shape": [3, 96, 128]}, {"type": "STATE", "shape": [8]}
    features = {"observation.images.image": image, "observation.images.image2": image, "observation.state": state}
    (tmp_path / "config.json").write_text(json.dumps({"type": "act", "n_action_steps": 25, "input_features": features}))
    return tmp_path


def test_both_are_asked_for_the_same_episodes_and_frames(checkpoint: Path, tmp_path: Path) -> None:
    subject = Subject(checkpoint, "libero_goal", 3, 4)
    ours, theirs = (command_of(evaluator, subject, tmp_path) for evaluator in (OURS, THEIRS))
    shared = {argument for argument in ours if argument.startswith("--env.")}
    assert shared == {argument for argument in theirs if argument.startswith("--env.")}
    assert {"--env.task_ids=[3]", "--env.observation_height=96", "--env.observation_width=128"} < shared
    assert {"--actions_per_chunk=25", "--n_episodes=4", "--inference_delay=0"} < set(ours)
    assert {"--eval.n_episodes=4", "--eval.batch_size=1"} < set(theirs)
    assert not any("episode_length" in argument for argument in ours + theirs)


def test_images_of_several_sizes_are_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["input_features"]["observation.images.image"]["shape"] = [3, 10, 10]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(AsyncDeltaError, match="several sizes"):
        _ = Subject(checkpoint, "libero_goal", 3, 4).frame_size


def test_a_different_episode_is_found() -> None:
    assert differences([run(OURS, 1.0), run(THEIRS, 9.0)]) == []
    (found,) = differences([run(OURS, 1.0), run(THEIRS, 9.0, sum_rewards=[1.0, 0.5])])
    assert "sum_rewards of lerobot-eval" in found
    (found,) = differences([run(OURS, 1.0), run(THEIRS, 9.0, successes=[True, True])])
    assert "successes of lerobot-eval" in found


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [{OURS: run(OURS, o), THEIRS: run(THEIRS, t)} for o, t in ((1.0, 10.0), (2.0, 12.0), (4.0, 32.0))]
    result = compare(rounds)
    assert result["ratio"] == {"median": 8.0, "min": 6.0, "max": 10.0}
    assert result["same_results"]
    assert result["seconds_per_episode"] == {OURS: 2.0, THEIRS: 12.0}
    # 280 steps at 70 a second, of them six waits of 0.1 s an episode.
    assert result["breakdown"] == pytest.approx({"reset_s": 1.5, "step_s": 3.4, "wait_s": 0.6})


def test_time_within_a_part_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("harness.reset_profile.time.perf_counter", lambda: now_s[0])
    watch = Stopwatch()

    def spend(seconds: float) -> None:
        now_s[0] += seconds

    render = watch.timed("render", spend)
    with watch.part("rest"):
        spend(1.0)
        with watch.part("step"):
            spend(2.0)
            render(4.0)
            spend(8.0)
        spend(16.0)
    spend(32.0)
    assert watch.take() == {"rest": 17.0, "step": 10.0, "render": 4.0}
    assert watch.take() == {}
