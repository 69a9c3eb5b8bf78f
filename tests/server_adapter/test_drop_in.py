"""A command line of lerobot-eval's, with its first word changed, gives the same figures."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from pusht_policies import build_for_pusht

from async_delta_inference.client.cli import main
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import serve


def test_same_figures_on_pusht(policy: LeRobotPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = build_for_pusht("diffusion", tmp_path / "policy")
    words = [
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--policy.num_inference_steps=3",
        "--env.type=pusht",
        "--env.episode_length=20",
        "--eval.n_episodes=2",
        "--eval.batch_size=1",
        "--seed=1000",
    ]
    from lerobot.scripts.lerobot_eval import eval_main

    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words, f"--output_dir={tmp_path / 'theirs'}"])
    eval_main()
    with serve(policy, "inproc://drop-in") as server:
        where = [f"--output_dir={tmp_path / 'ours'}", f"--server_address={server.uris[0]}", "--progress=false"]
        assert main([*words, "--preset=lerobot-eval", *where]) == 0
    theirs, ours = (json.loads((tmp_path / who / "eval_info.json").read_text()) for who in ("theirs", "ours"))
    exactly = partial(pytest.approx, rel=1e-14)  # Rewards are added up in another order.
    for figure in ("avg_sum_reward", "avg_max_reward", "pc_success", "n_episodes"):
        assert ours["overall"][figure] == exactly(theirs["overall"][figure])
    (their_task,), (our_task,) = theirs["per_task"], ours["per_task"]
    for figure in ("sum_rewards", "max_rewards", "successes"):
        assert our_task["metrics"][figure] == exactly(their_task["metrics"][figure])


def test_check_runs_nothing_and_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = build_for_pusht("act", tmp_path / "policy")
    words = [f"--policy.path={checkpoint}", "--env.type=pusht", "--check=true", f"--output_dir={tmp_path / 'out'}"]
    assert main(words) == 0
    assert "nothing differs" in capsys.readouterr().out
    config = json.loads((checkpoint / "config.json").read_text())
    config["input_features"]["observation.image"]["shape"] = [3, 64, 64]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert main(words) == 1
    assert "camera image as observation.image: another size" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out").exists()
