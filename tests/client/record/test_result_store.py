"""``results.jsonl`` and going on with a run: nothing that was there is lost, run twice, or of another evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from control_run import Run
from small_result import small_result

from async_delta_inference.client import EpisodeResult, EpisodeSpec, RunObserver, SimClient
from async_delta_inference.client.record.eval_info import eval_info
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.result_line import episode_of, line_of, line_of_given_up
from async_delta_inference.client.record.result_store import ResultStore
from async_delta_inference.client.record.results import GivenUp
from async_delta_inference.errors import ConfigError

GIVEN_UP = GivenUp(EpisodeSpec("goal", 1, 4, 1004, 4), ("SIGSEGV", "SIGSEGV"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_line_says_all_that_the_figures_need() -> None:
    result = small_result()
    before = eval_info(result)
    result.episodes = [episode_of(line_of(episode)) for episode in result.episodes]  # type: ignore[misc]
    assert eval_info(result) == before
    assert episode_of(line_of_given_up(GIVEN_UP)) == GIVEN_UP


def test_a_line_is_there_before_anybody_is_told(run: Run) -> None:
    kept: list[int] = []

    class Told(RunObserver):
        def episode_ended(self, *_: Any) -> None:
            kept.append(len((run.folder / "out1" / "results.jsonl").read_text().splitlines()))

    run.observers = [Told()]
    run(n_episodes=3)
    assert kept == [1, 2, 3]


def stored(folder: Path) -> ResultStore:
    store = ResultStore(OutputFolder(folder))
    store.load()
    return store


@pytest.mark.parametrize("torn", [b'{"task_group": "spa', b"\xff\n", b"{}\n", b'{"task_group": "stub"}'])
def test_a_torn_last_line_is_run_again(tmp_path: Path, torn: bytes) -> None:
    first, second, third, _ = small_result().episodes
    store = stored(tmp_path)
    store.keep(first)
    store.keep(second)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + torn)
    again = stored(tmp_path)
    assert list(again.episodes) == [first.spec.key, second.spec.key]
    again.keep(third)
    assert store.path.read_bytes() == whole + line_of(third).encode() + b"\n"


def test_a_line_in_the_middle_that_is_none_is_told(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.keep(small_result().episodes[0])
    store.path.write_bytes(b"rubbish\n" + store.path.read_bytes())
    with pytest.raises(ConfigError, match=r"results.jsonl, line 1"):
        stored(tmp_path)


def test_what_was_given_up_is_missing_until_it_has_a_result(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.give_up(GIVEN_UP)
    again = stored(tmp_path)
    assert (list(again.given_up), again.episodes) == ([GIVEN_UP.spec.key], {})
    again.keep(EpisodeResult(*GIVEN_UP.spec.key, seed=1004, init_state_id=4, success=True))
    assert (stored(tmp_path).given_up, list(again.episodes)) == ({}, [GIVEN_UP.spec.key])


# Going on.


class Killed(Exception):
    pass


class KilledAfter(RunObserver):
    """The end of a process, as far as one can have it within one: nothing is written any more."""

    def __init__(self, episodes: int) -> None:
        self._left = episodes

    def episode_ended(self, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            raise Killed


def lines(client: SimClient) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (client.output_dir / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "run"} for line in read]


def test_a_run_goes_on_where_it_ended(run: Run) -> None:
    whole = run.client(n_episodes=4, save_trajectories=True)
    whole.run()
    run.observers = [KilledAfter(2)]
    torn = run.client(n_episodes=4, save_trajectories=True)
    with pytest.raises(Killed):
        torn.run()
    run.observers = []
    rest = run.client(n_episodes=4, save_trajectories=True, output_dir=torn.output_dir, resume=True)
    result = rest.run()
    assert [episode.episode for episode in result.episodes] == [0, 1, 2, 3]
    assert run.environments[0].seeds[-2:] == [1002, 1003]
    assert lines(rest) == lines(whole)
    names = [{path.name for path in (c.output_dir / "trajectories").iterdir()} for c in (whole, rest)]
    assert names[0] == names[1]
    info = json.loads((rest.output_dir / "eval_info.json").read_text())
    assert (info["overall"]["n_episodes"], len(info["per_task"][0]["metrics"]["successes"])) == (4, 4)


def test_a_run_that_is_complete_has_nothing_to_do(run: Run) -> None:
    first = run.client(n_episodes=2)
    first.run()
    again = run.client(n_episodes=2, resume=str(first.output_dir), output_dir=None)
    assert len(again.run().episodes) == 2
    assert len(run.environments[0].seeds) == 2


def test_more_episodes_may_be_added(run: Run) -> None:
    first = run.client(n_episodes=1)
    first.run()
    assert len(run.client(n_episodes=3, output_dir=first.output_dir, resume=True).run().episodes) == 3
    assert run.environments[0].seeds == [1000, 1001, 1002]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"seed": 7}, "--seed was 1000 there and is 7 now"),
        ({"chunk_size_threshold": 0.25}, "--chunk_size_threshold was 0.5 there and is 0.25"),
        ({"inference_delay": "3"}, "--inference_delay was 0 there and is 3"),
    ],
)
def test_another_evaluation_is_refused_by_the_flag(run: Run, flags: dict[str, Any], named: str) -> None:
    first = run.client()
    first.run()
    before = (first.output_dir / "results.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=named):
        run.client(output_dir=first.output_dir, resume=True, **flags).start()
    assert (first.output_dir / "results.jsonl").read_bytes() == before
