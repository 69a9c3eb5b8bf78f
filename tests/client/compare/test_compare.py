"""``async-delta-compare`` on the folders of real runs of a stub environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from control_run import Run
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference.client import EpisodeSpec
from async_delta_inference.client.compare.comparison import compare_runs
from async_delta_inference.client.compare.runs import (
    check_comparable,
    check_same_episodes,
    differing_flags,
    read_finished,
)
from async_delta_inference.client.compare_cli import main
from async_delta_inference.errors import ConfigError


class Luck(StubEnvironment):
    """Succeeds in some episodes, after some steps."""

    def __init__(self, solved: dict[int, int], task_id: int = 0) -> None:
        super().__init__(task_id=task_id)
        self._solved = solved

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        super().reset(spec, render=render)
        self._outcomes = {self._solved[spec.episode]: SOLVED} if spec.episode in self._solved else {}


def folder_of(run: Run, *solved: dict[int, int], **flags: Any) -> Path:
    run.environments = [Luck(luck, task_id) for task_id, luck in enumerate(solved)]
    client = run.client(n_episodes=10, **flags)
    client.run()
    return client.output_dir


@pytest.fixture
def folders(run: Run) -> tuple[Path, Path]:
    """The second, with a delay, loses five episodes of ten of the first task, and is slower in the others."""
    every = dict.fromkeys(range(10), 12)
    return (
        folder_of(run, every, {}),
        folder_of(run, {0: 15, 1: 15, 2: 12, 3: 15, 4: 20}, {}, inference_delay="2"),
    )


def test_pairs_episodes_per_task_and_overall(folders: tuple[Path, Path]) -> None:
    first, second = map(read_finished, folders)
    check_comparable(first, second)
    comparison = compare_runs(first, second)
    assert [part.name for part in comparison.tasks] == ["stub/0", "stub/1"]
    task = comparison.tasks[0]
    assert (task.counts.both, task.counts.only_first, task.counts.only_second) == (5, 5, 0)
    assert task.p_value == pytest.approx(2 * 0.5**5)
    assert task.interval[0] < -0.5 < task.interval[1] < 0
    assert comparison.overall.counts.pairs == 20
    steps = task.figures["steps_to_completion"]
    assert steps is not None
    assert (steps.pairs, steps.difference) == (5, pytest.approx((3 + 3 + 0 + 3 + 8) / 5))
    assert comparison.tasks[1].figures["steps_to_completion"] is None
    assert [str(flag) for flag in differing_flags(first, second)] == ["--inference_delay: 0 and 2"]


def test_prints_what_it_found(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, folders)]) == 0
    out = capsys.readouterr().out
    assert "differs: --inference_delay: 0 and 2" in out
    assert "No difference of the success rates was told" in out
    assert "n/a" in out


def test_json_says_null_for_what_is_not_known(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, folders), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tasks"][1]["figures"]["steps_to_completion"] is None
    assert said["overall"]["counts"] == {"both": 5, "only_first": 5, "only_second": 0, "neither": 10}


@pytest.mark.parametrize(("told", "known"), [((True, True), True), ((True, False), False), ((None, True), None)])
def test_says_where_pairs_have_nothing_in_common(
    told: tuple[bool | None, bool | None],
    known: bool | None,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, repeatable in zip(folders, told, strict=True):
        info = json.loads((folder / "eval_info.json").read_text())
        info["overall"]["async"]["repeatable"] = repeatable
        (folder / "eval_info.json").write_text(json.dumps(info))
    assert main([*map(str, folders)]) == 0
    assert ("is not repeatable" in capsys.readouterr().out) is (known is False)
    assert main([*map(str, folders), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repeatable"] is known


@pytest.mark.parametrize("flags", [{"seed": 5}, {"success_key": "solved"}])
def test_runs_of_other_episodes_are_refused_by_the_flag(run: Run, flags: dict) -> None:
    first, second = (read_finished(folder_of(run, {}, **given)) for given in ({}, flags))
    (name,) = flags
    with pytest.raises(ConfigError, match=f"not comparable: .* differ in --{name}: "):
        check_comparable(first, second)


def test_runs_without_a_common_episode_are_refused(run: Run) -> None:
    first = read_finished(folder_of(run, {}))
    run.environments = [StubEnvironment(task_id=7)]
    client = run.client()
    client.run()
    with pytest.raises(ConfigError, match="no episode in common"):
        check_same_episodes(first, read_finished(client.output_dir))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "async-delta-compare RUN RUN; got 0: none"),
        (("a",), "async-delta-compare RUN RUN; got 1: a"),
        (("nowhere", "nobody"), "nowhere/run.yaml cannot be read"),
        (("a", "b", "--difference=0"), "--difference must be"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
