"""A command line of lerobot-eval's, with its first word changed, gives the same figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lerobot.envs.configs import AlohaEnv, LiberoEnv
from numpy.typing import NDArray
from pusht_policies import build_for_pusht
from random_act import build_random_act

from async_delta_inference.client import checking
from async_delta_inference.client.cli import main
from async_delta_inference.client.environments import make_environments
from async_delta_inference.client.environments.libero_setup import prepare_libero
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import serve

POLICIES = Path(__file__).parents[2] / "examples/policies"
EPISODES = 2
LONG = (pytest.mark.slow, pytest.mark.timeout(3600))


@dataclass(frozen=True)
class Line:
    """A command line of lerobot-eval's but for the checkpoint, and how many actions its episodes have together."""

    words: tuple[str, ...]
    checkpoint: Callable[[Path], Path]
    actions: int | None = None


def random_act(make_config: Callable[[], Any], chunk_size: int) -> Callable[[Path], Path]:
    """A small one that sees images in the environment's own size."""

    def build(folder: Path) -> Path:
        (environment,) = make_environments(make_config())
        build_random_act(folder, environment.features, environment.action_dim, image_size=None, chunk_size=chunk_size)
        environment.close()
        return folder

    return build


LIBERO = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]")
LIBERO_128 = (*LIBERO, "--env.observation_height=128", "--env.observation_width=128")
METAWORLD = (
    "--env.type=metaworld",
    "--env.task=reach-v3",
    '--rename_map={"observation.image": "observation.images.image"}',
)
LINES = {
    "pusht": Line(
        ("--env.type=pusht", "--env.episode_length=20", "--policy.num_inference_steps=3"),
        partial(build_for_pusht, "diffusion"),
        actions=40,
    ),
    "aloha": Line(
        ("--env.type=aloha", "--env.episode_length=4"), random_act(lambda: AlohaEnv(episode_length=4), 3), actions=8
    ),
    "libero": Line(
        (*LIBERO_128, "--env.episode_length=6"),
        random_act(lambda: libero_128(6), 4),
        actions=12,
    ),
    # LeRobot fixes the length of MetaWorld's episodes: a trained policy ends them early.
    "metaworld-trained": Line(METAWORLD, lambda _: POLICIES / "act_metaworld_reach_v3"),
    "libero-trained": Line(LIBERO_128, lambda _: trained_for_libero()),
}


def trained_for_libero() -> Path:
    prepare_libero()  # LIBERO's own import asks at the terminal where its files are.
    return POLICIES / "act_libero_object_0"


def libero_128(length: int) -> LiberoEnv:
    return LiberoEnv(
        task="libero_object", task_ids=[0], episode_length=length, observation_height=128, observation_width=128
    )


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "pusht" else LONG) for name in LINES])
def test_same_figures(name: str, policy: LeRobotPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = LINES[name]
    checkpoint = line.checkpoint(tmp_path / "policy")
    words = [
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        *line.words,
        f"--eval.n_episodes={EPISODES}",
        "--eval.batch_size=1",
        "--seed=1000",
    ]
    their_actions = run_theirs(words, tmp_path / "theirs", monkeypatch)
    with serve(policy, "inproc://drop-in") as server:
        where = [f"--output_dir={tmp_path / 'ours'}", f"--server_address={server.uris[0]}", "--progress=false"]
        assert main([*words, "--preset=lerobot-eval", *where, "--save_trajectories=true"]) == 0
    our_actions = actions_in(tmp_path / "ours")
    assert [a.tobytes() for a in our_actions] == [a.tobytes() for a in their_actions]
    assert line.actions in (None, sum(len(actions) for actions in our_actions))
    assert_same_figures(tmp_path)


def test_a_file_starts_the_run_and_the_run_leaves_one_that_starts_it_again(
    policy: LeRobotPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_folder: Path
) -> None:
    """As a user of LeRobot writes it, for both commands; over shared memory."""
    settings = {
        "policy": {"path": str(build_for_pusht("act", tmp_path / "policy")), "device": "cpu", "n_action_steps": 5},
        "env": {"type": "pusht", "episode_length": 12},
        "eval": {"n_episodes": EPISODES, "batch_size": 1},
        "seed": 1000,
    }
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump(settings))
    theirs = run_theirs([f"--config_path={file}"], tmp_path / "theirs", monkeypatch)
    expected = [actions.tobytes() for actions in theirs]
    quiet = ["--progress=false", "--save_trajectories=true"]
    with serve(policy, "shm://drop-in") as server:
        ours = ["--preset=lerobot-eval", f"--server_address={server.uris[0]}", f"--output_dir={tmp_path / 'ours'}"]
        assert main([f"--config_path={file}", *ours, *quiet]) == 0
        left = f"--config_path={tmp_path / 'ours/run.yaml'}"
        assert main([left, f"--output_dir={tmp_path / 'again'}"]) == 0
        assert main([left, f"--output_dir={tmp_path / 'second'}", "--eval.n_episodes=1", "--seed=1001"]) == 0
        assert main([left, f"--output_dir={tmp_path / 'longer'}", "--policy.n_action_steps=7"]) == 0
    assert [actions.tobytes() for actions in actions_in(tmp_path / "ours")] == expected
    assert [actions.tobytes() for actions in actions_in(tmp_path / "again")] == expected
    assert [actions.tobytes() for actions in actions_in(tmp_path / "second")] == expected[1:]
    assert [actions.tobytes() for actions in actions_in(tmp_path / "longer")] != expected


def actions_in(folder: Path) -> list[NDArray[np.float32]]:
    return [np.load(file)["action"] for file in sorted((folder / "trajectories").iterdir())]


def run_theirs(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """The command lerobot-eval; the actions (T, A) of its episodes are looked at in passing."""
    from lerobot.scripts import lerobot_eval

    recorded = []

    def rollout(*args: Any, **kwargs: Any) -> Any:
        result = lerobot_eval_rollout(*args, **kwargs)
        recorded.append(result["action"].numpy()[0])
        return result

    lerobot_eval_rollout = lerobot_eval.rollout
    folder.mkdir()
    monkeypatch.setattr(lerobot_eval, "rollout", rollout)
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words, f"--output_dir={folder}"])
    lerobot_eval.eval_main()
    return recorded


def assert_same_figures(folder: Path) -> None:
    theirs, ours = (json.loads((folder / who / "eval_info.json").read_text()) for who in ("theirs", "ours"))
    exactly = partial(pytest.approx, rel=1e-14)  # Rewards are added up in another order.
    for figure in ("avg_sum_reward", "avg_max_reward", "pc_success", "n_episodes"):
        assert ours["overall"][figure] == exactly(theirs["overall"][figure])
    (their_task,), (our_task,) = theirs["per_task"], ours["per_task"]
    assert (our_task["task_group"], our_task["task_id"]) == (their_task["task_group"], their_task["task_id"])
    for figure in ("sum_rewards", "max_rewards", "successes"):
        assert our_task["metrics"][figure] == exactly(their_task["metrics"][figure])
        assert len(our_task["metrics"][figure]) == EPISODES


def test_check_runs_nothing_and_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = build_for_pusht("act", tmp_path / "policy")
    words = [f"--policy.path={checkpoint}", "--env.type=pusht", "--check=true", f"--output_dir={tmp_path / 'out'}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "nothing differs" in out
    assert [line.split("│")[2].strip() for line in out.splitlines() if "repeatable" in line] == ["yes"]
    config = json.loads((checkpoint / "config.json").read_text())
    config["input_features"]["observation.image"]["shape"] = [3, 64, 64]
    (checkpoint / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(checking, "is_repeatable", lambda make, seed: False)
    assert main(words) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "camera image as observation.image: another size" in out
    assert "warning: repeatable: the same seed and actions gave something else the second time" in out
    assert not (tmp_path / "out").exists()
