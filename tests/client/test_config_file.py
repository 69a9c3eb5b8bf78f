"""``--config_path``: a file of flags in either spelling, and what a run has left, with flags that are given anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from async_delta_inference.client.config_file import ConfigFile, read_config
from async_delta_inference.client.lerobot_flags import in_our_words
from async_delta_inference.client.record.run_file import describe_run, write_run
from async_delta_inference.errors import ConfigError


def read(folder: Path, content: Any, *words: str) -> ConfigFile:
    file = folder / "flags.json"
    file.write_text(json.dumps(content))
    return read_config([f"--config_path={file}", *words], "program")


def test_what_stands_there_in_lerobots_words_comes_before_the_command_line(tmp_path: Path) -> None:
    content = {
        "policy": {"path": "folder", "n_action_steps": 10, "down_dims": [8, 16]},
        "eval": {"n_episodes": 3},
        "env": {"type": "pusht"},
        "seed": 7,
    }
    found = read(tmp_path, content, "--policy.n_action_steps=5")
    assert in_our_words(found.words) == [
        "--pretrained_name_or_path=folder",
        "--n_episodes=3",
        '--policy_overrides=["n_action_steps=5", "down_dims=[8, 16]"]',
    ]
    assert found.settings == {"env": {"type": "pusht"}, "seed": 7}
    assert read_config(["--config_path", str(tmp_path / "flags.json")], "program").settings == found.settings
    assert read_config(["--seed=3"], "program").words == ["--seed=3"]


def test_a_preset_is_for_what_a_file_does_not_say() -> None:
    words = in_our_words(["--preset=lerobot-eval"], {"n_episodes": 3, "noise": "request"})
    assert not [word for word in words if word.startswith(("--n_episodes", "--noise"))]
    assert "--clock=simulated" in words


RUN: dict[str, Any] = {
    "configuration": {
        "env": {"type": "pusht", "episode_length": 300},
        "pretrained_name_or_path": "",
        "policy_overrides": ["n_action_steps=10"],
        "clock": "simulated",
        "inference_delay": "auto",
        "inference_delay_s": None,
        "transport": "shm",
        "server_address": None,
        "output_dir": "out",
        "resume": None,
    },
    "versions": {"numpy": "0.1", "gone": "1"},
    "threads": {"OMP_NUM_THREADS": "64"},
    "inference_delay_steps": [4],
}


def test_a_run_is_started_with_the_delay_that_it_measured_and_writes_elsewhere(tmp_path: Path) -> None:
    found = read(tmp_path, RUN)
    assert found.settings["inference_delay"] == "4"
    assert "output_dir" not in found.settings
    assert in_our_words(found.words) == ['--policy_overrides=["n_action_steps=10"]']
    assert read(tmp_path, RUN, "--resume=out").settings["inference_delay"] == "auto"


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["--clock=realtime"], {"inference_delay", "inference_delay_s"}),
        (["--inference_delay_s=0.1"], {"inference_delay", "inference_delay_s"}),
        (["--server_address=grpc://somewhere:1"], {"transport", "server_address"}),
        (["--env.type=aloha"], {"env"}),
    ],
)
def test_a_flag_that_is_given_anew_is_not_contradicted(tmp_path: Path, words: list[str], gone: set[str]) -> None:
    assert set(read(tmp_path, RUN).settings) - set(read(tmp_path, RUN, *words).settings) == gone


def test_what_differs_from_the_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    versions, threads = read(tmp_path, RUN).notes
    assert "numpy was 0.1 and is" in versions
    assert "gone" not in versions
    assert "OMP_NUM_THREADS was 64 and is 1" in threads
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    described = describe_run({"pretrained_name_or_path": str(checkpoint)}, checkpoint)
    write_run(tmp_path / "run.yaml", described)
    words = [f"--config_path={tmp_path / 'run.yaml'}"]
    assert read_config(words, "program").notes == []
    (checkpoint / "config.json").write_text("{ }")
    (note,) = read_config(words, "program").notes
    assert "files in" in note
    assert read_config([*words, "--policy.path=another"], "program").notes == []


def test_a_preset_beside_a_whole_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --preset out"):
        read(tmp_path, RUN, "--preset=lerobot-eval")


ENVIRONMENTS = {
    "pusht": [],
    "aloha": ["--env.task=AlohaInsertion-v0"],
    "libero": ["--env.task=libero_object", "--env.task_ids=[0, 2]", "--env.observation_height=128"],
    "metaworld": ["--env.task=reach-v3"],
    "gymnasium": ["--env.task=CartPole-v1"],
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_flag_of_a_run_comes_back(name: str, tmp_path: Path) -> None:
    from async_delta_inference.client.cli import parse_evaluation

    words = [
        f"--env.type={name}",
        *ENVIRONMENTS[name],
        "--policy.path=somebody/something",
        "--policy.n_action_steps=3",
        '--rename_map={"observation.image": "observation.images.top"}',
        "--n_envs=2",
        "--clock=simulated",
        "--inference_delay_s=0.1",
        "--rtc.execution_horizon=7",
        "--grpc.token_file=~/token",
    ]
    config = parse_evaluation(words)
    write_run(tmp_path / "run.yaml", describe_run(config, None))
    again = parse_evaluation([f"--config_path={tmp_path / 'run.yaml'}"])
    assert describe_run(again, None)["configuration"] == describe_run(config, None)["configuration"]
    assert vars(again.env) == vars(config.env)
    words = [f"--config_path={tmp_path / 'run.yaml'}", "--env.episode_length=5", "--policy.device=cuda"]
    again = parse_evaluation(words)
    assert (again.env.episode_length, again.policy_device) == (5, "cuda")
