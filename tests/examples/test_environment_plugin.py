"""The README's environment is a real package of one file: found, evaluated, and equal to LeRobot's own rollout."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from env_rollouts import assert_same_episodes, random_actions, run_lerobot, run_ours
from lerobot.envs.configs import EnvConfig

from async_delta_inference.client import cli
from async_delta_inference.client.environments import known_environments, make_environments
from async_delta_inference.transport import Observation, serve

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "environment_plugin"
PROJECT = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]


@pytest.fixture(params=["lerobot_env_point", "lerobot-env-point"])
def installed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As pip installs it for development: its folder is on the path, its metadata lies where packages do."""
    metadata = tmp_path / "lerobot_env_point-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {request.param}\nVersion: {PROJECT['version']}\n")
    lines = [
        line
        for group, entries in PROJECT["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(PLUGIN)
    yield
    # As if it had never been installed.
    sys.modules.pop("lerobot_env_point", None)
    EnvConfig._choice_registry.pop("point", None)


@pytest.mark.usefixtures("installed")
def test_it_is_found_and_equals_lerobots_own_rollout() -> None:
    config = known_environments().get_choice_class("point")()
    (env,) = make_environments(config)
    assert (env.features.state_names, env.task_description) == (("x", "y"), "reach the middle")
    ours = run_ours(env, random_actions(-0.1, 0.1, 2), episodes=2)
    theirs = run_lerobot(config, random_actions(-0.1, 0.1, 2), episodes=2)
    assert_same_episodes(ours, theirs)
    assert np.array_equal(env.hold_action(), [0, 0])
    env.close()


def towards_the_middle(observation: Observation) -> np.ndarray:
    return np.clip(-observation.state, -0.1, 0.1)[None].repeat(1, axis=0)


@pytest.mark.usefixtures("installed")
def test_the_command_evaluates_it(tmp_path: Path) -> None:
    with serve(towards_the_middle, "inproc://point") as server:
        flags = [f"--server_address={server.uris[0]}", "--env.type=point", "--actions_per_chunk=1", "--n_episodes=2"]
        flags += ["--clock=simulated", "--inference_delay=0", f"--output_dir={tmp_path}/out", "--progress=false"]
        assert cli.main([*flags, "--on_starvation=hold"]) == 0
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["pc_success"] == 100


@pytest.mark.parametrize("name", ["lerobot_env_point.py", "pyproject.toml"])
def test_the_readme_shows_the_real_file(name: str) -> None:
    assert (PLUGIN / name).read_text().strip() in (ROOT / "README.md").read_text()
