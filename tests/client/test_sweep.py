"""``async-delta-sweep`` of a stub environment: the grid, what is run, and what a killed sweep goes on with."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference.client import Environment, EpisodeSpec, SimClientConfig, register_environment, sweep_cli
from async_delta_inference.client.compare.runs import read_finished
from async_delta_inference.client.sweep import split_grid
from async_delta_inference.client.sweep_cli import main, run_sweep
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Observation, Server, serve

DELAYS = ["0", "2", "4"]
EPISODES = 4


class Fragile(StubEnvironment):
    """Succeeds in even episodes; dies when it is told to."""

    resets = 0
    dies_at = -1

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        Fragile.resets += 1
        if Fragile.resets == Fragile.dies_at:
            raise KeyboardInterrupt
        super().reset(spec, render=render)
        self._outcomes = {20 + spec.episode: SOLVED} if spec.episode % 2 == 0 else {}


@pytest.fixture
def server() -> Iterator[Server]:
    """Counts its sessions' observations."""

    @register_environment("fragile")
    def make(config: Any) -> list[Environment]:
        return [Fragile()]

    def policy(observation: Observation) -> list[list[float]]:
        return [[float(observation.timestep + i), 0.0] for i in range(8)]

    Fragile.resets, Fragile.dies_at = 0, -1
    with serve(policy, "inproc://sweep") as server:
        yield server


def parse(words: Sequence[str]) -> SimClientConfig:
    """As the command does, without LeRobot."""
    flags: dict[str, Any] = dict(word.removeprefix("--").split("=", 1) for word in words)
    for name in {"n_episodes", "actions_per_chunk", "max_batch"} & set(flags):
        flags[name] = int(flags[name])
    return SimClientConfig(env=SimpleNamespace(type="fragile"), progress=False, **flags)


def words(folder: Path, *more: str) -> list[str]:
    return [
        "--sweep.on_starvation=wait,skip",
        f"--sweep.inference_delay={','.join(DELAYS)}",
        *("--clock=simulated", "--aggregate_fn_name=latest_only", "--actions_per_chunk=8"),
        *(f"--n_episodes={EPISODES}", "--server_address=inproc://sweep", f"--output_dir={folder}", *more),
    ]


def test_every_combination_is_run_and_told(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sweep(words(tmp_path), parse) == 0
    assert Fragile.resets == 2 * len(DELAYS) * EPISODES
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["on_starvation"], row["inference_delay"]) for row in rows] == [
        (mode, delay) for mode in ("wait", "skip") for delay in DELAYS
    ]
    assert {row["success_rate"] for row in rows} == {"0.5"}
    assert [float(row["max_reaction_latency_steps"]) for row in rows if row["on_starvation"] == "skip"] == [0, 2, 4]
    assert (tmp_path / "success.svg").read_text().count("<polyline") == 2
    assert "on_starvation=skip" in (tmp_path / "report.html").read_text()
    assert "2 of 4" in capsys.readouterr().out


def test_a_sweep_that_ended_in_the_middle_goes_on_to_the_same_table(server: Server, tmp_path: Path) -> None:
    run_sweep(words(tmp_path / "whole"), parse)
    Fragile.resets, Fragile.dies_at = 0, 2 * EPISODES + 3
    with pytest.raises(KeyboardInterrupt):
        run_sweep(words(tmp_path / "torn"), parse)
    run_sweep(words(tmp_path / "torn"), parse)
    # The one that was under way when it ended is run again, and no other.
    assert Fragile.resets == 2 * len(DELAYS) * EPISODES + 1
    assert (tmp_path / "torn" / "table.csv").read_text() == (tmp_path / "whole" / "table.csv").read_text()


def test_a_complete_sweep_runs_nothing_again(server: Server, tmp_path: Path) -> None:
    run_sweep(words(tmp_path), parse)
    before = Fragile.resets
    run_sweep(words(tmp_path), parse)
    assert Fragile.resets == before


def test_other_flags_in_the_same_folder_are_refused_by_name(server: Server, tmp_path: Path) -> None:
    run_sweep(words(tmp_path), parse)
    with pytest.raises(ConfigError, match="--seed was 1000 there and is 5 now"):
        run_sweep(words(tmp_path, "--seed=5"), lambda given: parse_seed(given))


def parse_seed(given: Sequence[str]) -> SimClientConfig:
    config = parse([word for word in given if not word.startswith("--seed=")])
    config.seed = 5
    return config


def test_several_servers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--num_servers: a sweep has one server"):
        run_sweep([*words(tmp_path), "--n_envs=2", "--num_servers=2"], lambda _: SimpleNamespace(num_servers="2"))


def test_points_pair_with_each_other(server: Server, tmp_path: Path) -> None:
    """Equal seeds: what async-delta-compare needs."""
    run_sweep(words(tmp_path), parse)
    first, second = (read_finished(tmp_path / f"on_starvation=wait,inference_delay={delay}") for delay in ("0", "4"))
    assert [e.spec for e in first.episodes.values()] == [e.spec for e in second.episodes.values()]


def test_server_of_its_own_is_told_what_is_the_servers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Child:
        def __init__(self, transport: str, log: Path, *, policy_host: str, flags: list[str]) -> None:
            told.append((transport, policy_host, flags))

        def wait_until_ready(self, timeout_s: float) -> str:
            return "inproc://sweep"

        def stop(self) -> None:
            told.append("stopped")

    monkeypatch.setattr(sweep_cli, "EmbeddedServer", Child)
    given = [word for word in words(tmp_path) if not word.startswith("--server_address")]

    def parse_own(given: Sequence[str]) -> SimClientConfig:
        # There is no checkpoint: it is named while the configuration asks for one, and not when it is looked at.
        has_server = any(word.startswith("--server_address") for word in given)
        return parse([*given] if has_server else [*given, "--pretrained_name_or_path=a/b"])

    assert run_sweep([*given, "--max_batch=2", "--policy_host=policy_server"], parse_own) == 0
    assert told == [("shm", "policy_server", ["--max_batch=2", "--max_sessions=64"]), "stopped"]


def test_lists_are_single_values() -> None:
    points, others = split_grid(["--sweep.env.task_ids=[0,1],[2]", "--seed=3"])
    assert [point.arguments for point in points] == [["--env.task_ids=[0,1]"], ["--env.task_ids=[2]"]]
    assert [point.name for point in points] == ["env.task_ids=_0,1_", "env.task_ids=_2_"]
    assert others == ["--seed=3"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--seed=1"], "nothing to sweep"),
        (["--sweep.seed="], "write --sweep.FLAG=VALUE"),
        (["--sweep.seed"], "write --sweep.FLAG=VALUE"),
        (["--sweep.output_dir=a,b"], "one output_dir"),
        (["--sweep.max_batch=1,2"], "one max_batch"),
        (["--sweep.seed=1,2", "--seed=3"], "--seed is given twice"),
        (["--sweep.seed=1,1"], "twice"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(given: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        split_grid(given)


def test_a_mistake_in_the_last_value_ends_the_sweep_before_it_begins(server: Server, tmp_path: Path) -> None:
    given = [word.replace("wait,skip", "wait,sleep") for word in words(tmp_path)]
    with pytest.raises(ConfigError, match="--on_starvation"):
        run_sweep(given, parse)
    assert Fragile.resets == 0


def test_help_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--sweep.FLAG" in capsys.readouterr().out
