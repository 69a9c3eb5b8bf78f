"""Many simulators: the episodes are the same whoever runs them, and whatever dies meanwhile."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from worker_world import WorldConfig, make_policy, make_policy_of_a_gpu

from async_delta_inference.client import Evaluation, SimClient, SimClientConfig, evaluate
from async_delta_inference.client.environments import EpisodeSpec
from async_delta_inference.client.record.events import (
    EpisodeEnded,
    EpisodeFailed,
    EpisodeGivenUp,
    EpisodeStarted,
    Event,
    RunEnded,
    RunStarted,
    ServerStarted,
)
from async_delta_inference.client.record.run_file import read_run
from async_delta_inference.client.run import forking, gpus, own_servers
from async_delta_inference.client.run.plan import WorkList
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport.testing import ServedPeer

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have loaded takes a new Python long, and these workers need none of it."""
    monkeypatch.setattr(forking, "_PRELOADED_IF_HERE", ())


@pytest.fixture
def server() -> Iterator[ServedPeer]:
    with ServedPeer("shm", make_policy=make_policy) as peer:
        yield peer


def config(folder: Path, uri: str | None, world: WorldConfig | None = None, **flags: Any) -> SimClientConfig:
    return SimClientConfig(
        env=world or WorldConfig(tasks=2),
        server_address=uri,
        output_dir=folder,
        **{
            "actions_per_chunk": 5,
            "n_episodes": 5,
            "clock": "simulated",
            "inference_delay": "1",
            "save_trajectories": True,
        }
        | flags,
    )


def kept(folder: Path) -> dict[str, Any]:
    """Lines without what the run added, sorted, and the bytes of the trajectories."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (folder / "trajectories").iterdir()}
    found["lines"] = sorted(json.dumps({k: v for k, v in line.items() if k != "run"}) for line in lines)
    return found


def workers(server: ServedPeer) -> list[psutil.Process]:
    """Those that run episodes: children of the process that forks."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if process.ppid() != os.getpid() and process.pid != server.pid]


def test_any_number_of_simulators_in_any_order_gives_the_same_bytes(
    server: ServedPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluate(config(tmp_path / "1", server.uri))
    assert len(result.episodes) == 10
    evaluate(config(tmp_path / "3", server.uri, n_envs=3))
    handed_out = random.Random(7)

    def any_of_them(work: WorkList, *_: Any) -> EpisodeSpec | None:
        left = [episodes for episodes in work._by_task.values() if episodes]
        if not left:
            return None
        episodes = handed_out.choice(left)
        episodes.rotate(handed_out.randrange(len(episodes)))
        return episodes.popleft()

    monkeypatch.setattr(WorkList, "take", any_of_them)
    evaluate(config(tmp_path / "2", server.uri, n_envs=2))
    assert kept(tmp_path / "1") == kept(tmp_path / "2") == kept(tmp_path / "3")
    info = [json.loads((tmp_path / n / "eval_info.json").read_text())["per_task"] for n in ("1", "2", "3")]
    assert info[0][1]["metrics"] == info[1][1]["metrics"] == info[2][1]["metrics"]


def test_events_tell_what_happens(server: ServedPeer, tmp_path: Path) -> None:
    events: list[Event] = []
    evaluate(config(tmp_path, server.uri, n_episodes=2), n_envs=2, on_event=events.append)
    assert isinstance(events[0], RunStarted)
    assert (len(events[0].episodes), events[0].n_envs) == (4, 2)
    assert isinstance(events[-1], RunEnded)
    ended = {event.result.spec.key for event in events if isinstance(event, EpisodeEnded)}
    started = {event.spec.key for event in events if isinstance(event, EpisodeStarted)}
    assert ended == started == {("world", task, episode) for task in (0, 1) for episode in (0, 1)}


def test_a_simulator_that_crashes_hangs_or_raises_takes_its_own_process_only(
    server: ServedPeer, tmp_path: Path
) -> None:
    does = {"0 1": "crash", "0 3": "hang", "1 0": "raise", "1 2": "once"}
    world = WorldConfig(tasks=2, does=does, folder=tmp_path)
    events: list[Event] = []
    flags: dict[str, Any] = {"n_envs": 2, "max_retries": 1, "episode_timeout_s": 4.0}
    result = evaluate(config(tmp_path / "out", server.uri, world, **flags), on_event=events.append)
    assert len(result.episodes) == 7
    reasons = {given_up.spec.key[1:]: given_up.failures for given_up in result.given_up}
    assert {key: len(failures) for key, failures in reasons.items()} == {(0, 1): 2, (0, 3): 2, (1, 0): 2}
    assert "SIGSEGV" in reasons[0, 1][0]
    assert reasons[0, 3][0] == "took no step for 4 s"
    assert "world/1 failed in step: ValueError: it broke" in reasons[1, 0][0]
    assert sum(isinstance(event, EpisodeGivenUp) for event in events) == 3
    assert sum(isinstance(event, EpisodeFailed) for event in events) == 4
    figures = json.loads((tmp_path / "out" / "eval_info.json").read_text())["overall"]
    assert (figures["n_episodes"], figures["async"]["failed_attempts"]) == (7, 7)
    assert [entry["episode"] for entry in figures["async"]["given_up"]] == [1, 3, 0]
    # They are missing, and all that is.
    again = evaluate(config(tmp_path / "out", server.uri, world, resume=True, **flags))
    assert len(again.given_up) == 3


def test_a_simulator_that_never_works_ends_the_run(server: ServedPeer, tmp_path: Path) -> None:
    world = WorldConfig(tasks=1, does={f"0 {episode}": "raise" for episode in range(5)})
    with pytest.raises(EpisodeError, match="no episode can be run here"):
        evaluate(config(tmp_path, server.uri, world, max_retries=0))


def test_killed_workers_change_nothing(server: ServedPeer, tmp_path: Path) -> None:
    evaluate(config(tmp_path / "whole", server.uri))
    chance = random.Random(3)
    kills = 0
    for event in Evaluation(
        config(tmp_path / "killed", server.uri, WorldConfig(2, step_s=0.02), n_envs=2, max_retries=9)
    ):
        if isinstance(event, EpisodeStarted) and kills < 5:
            chance.choice(workers(server)).send_signal(signal.SIGKILL)
            kills += 1
    assert kills == 5
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


def test_a_run_that_is_left_keeps_what_is_complete_and_goes_on(server: ServedPeer, tmp_path: Path) -> None:
    evaluate(config(tmp_path / "whole", server.uri))
    left = Evaluation(config(tmp_path / "left", server.uri, n_envs=2))
    for event in left:
        if isinstance(event, EpisodeEnded):
            break
    events: list[Event] = []
    evaluate(config(tmp_path / "left", server.uri, n_envs=3, resume=True), on_event=events.append)
    assert isinstance(events[0], RunStarted)
    assert len(events[0].missing) == 9
    assert kept(tmp_path / "left") == kept(tmp_path / "whole")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Flags of a run that starts servers of its own, of a kind that loads no LeRobot."""
    monkeypatch.setattr(own_servers, "MODULE", "serve_world")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    checkpoint = tmp_path / "policy"
    checkpoint.mkdir()
    cameras = {"observation.images.camera": {"shape": [3, 4, 4]}}
    (checkpoint / "config.json").write_text(json.dumps({"input_features": cameras}))
    return {"policy_type": "act", "pretrained_name_or_path": str(checkpoint), "transport": "shm"}


def own_processes() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if "serve_world" in process.cmdline()]


@pytest.mark.parametrize("count", [1, 2])
def test_one_of_its_own_servers_that_dies_is_started_again_alone(
    server: ServedPeer, own: dict[str, Any], tmp_path: Path, count: int
) -> None:
    """All are in the middle of an episode then; from there on none ends before the server is back."""
    evaluate(config(tmp_path / "whole", server.uri))
    world = WorldConfig(2, {f"{task} {episode}": "wait" for task in (0, 1) for episode in range(5)}, tmp_path, 0.01)
    go = tmp_path / "go"
    started: list[ServerStarted] = []
    at_work: set[int] = set()
    at_first: list[int] = []
    for event in Evaluation(config(tmp_path / "died", None, world, **own, n_envs=4, num_servers=count)):
        if isinstance(event, EpisodeStarted) and not at_first:
            at_work.add(event.worker)
            if len(at_work) == 4:
                at_first = [process.pid for process in own_processes()]
                os.kill(at_first[-1], signal.SIGKILL)
                go.touch()
        elif isinstance(event, EpisodeFailed) and not started[-1].restarts:
            go.unlink(missing_ok=True)
        elif isinstance(event, ServerStarted):
            started.append(event)
            if event.restarts:
                go.touch()
    assert len(at_first) == count
    assert [event.restarts for event in started] == [0] * count + [1]
    assert kept(tmp_path / "died")["lines"] == kept(tmp_path / "whole")["lines"]
    logs = {path.name for path in (tmp_path / "died").glob("server*.log")}
    assert logs == ({"server.log", "server_1.log"} if count == 1 else {"server.log", "server2.log", "server2_1.log"})
    assert not own_processes()


def test_each_of_several_servers_sees_one_gpu(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs are made up. There are no more servers than simulators, and of those no more than episodes."""
    monkeypatch.setattr(gpus, "visible_gpus", lambda: ["5", "GPU-af3", "7"])
    flags = own | {"n_envs": 4, "num_servers": "auto", "policy_device": "cuda"}
    result = evaluate(config(tmp_path / "out", None, WorldConfig(1), n_episodes=2, **flags))
    assert len(result.episodes) == 2
    seen = {path.name: path.read_text() for path in (tmp_path / "out").glob("server*.log")}
    assert seen["server.log"] == "sees the GPUs 5\n"
    assert seen["server2.log"] == "sees the GPUs GPU-af3\n"
    assert not own_processes()


def test_gpus_are_dealt_out_to_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def variables(most: int = 8, **flags: Any) -> list[str | None]:
        wanted = config(tmp_path, None, **{"n_envs": 8, "policy_device": "cuda"} | flags)
        return [own.get("CUDA_VISIBLE_DEVICES") for own in gpus.servers_variables(wanted, most)]

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert variables(num_servers="auto") == ["0", "1"]
    assert variables(num_servers=3) == ["0", "1", "0"]
    assert variables(num_servers=5, most=3) == ["0", "1", "0"]
    assert variables() == variables(num_servers=1) == variables(num_servers="auto", most=1) == [None]
    assert variables(num_servers="auto", policy_device="cpu") == [None]
    assert variables(num_servers=2, policy_device="cpu") == [None, None]
    for said, found in (("3,1", ["3", "1"]), ("MIG-a, GPU-b", ["MIG-a", "GPU-b"]), ("1,0,99", ["1", "0"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert variables(num_servers="auto") == found
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no GPU can be seen here"):
        variables(num_servers=2)


def test_a_run_says_how_its_policy_computed(
    server: ServedPeer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> Any:
        return read_run(tmp_path / "run.yaml")["computation"]

    here, there = {"device": "cpu", "threads": 1}, {"device": "cuda:0", "threads": 1}
    evaluate(config(tmp_path, server.uri, n_episodes=1, n_envs=2))
    assert said() == [here]
    with ServedPeer("shm", make_policy=make_policy_of_a_gpu) as other:
        SimClient(config(tmp_path, other.uri, n_episodes=2, resume=True, progress=False)).run()
    assert said() == [here, there]
    told = [record.message for record in caplog.records if "computes otherwise" in record.message]
    assert len(told) == 1
    assert told[0].endswith("device was cpu and is cuda:0")


def test_the_realtime_clock_of_many_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = {"clock": "realtime", "inference_delay": None, "n_envs": 2}
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match="leave --n_envs out"):
        list(Evaluation(config(tmp_path, "inproc://nobody", **flags)))
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="nobody"):
        list(Evaluation(config(tmp_path, "shm://nobody", connect_timeout_s=0.1, reconnect_timeout_s=0.1, **flags)))
    assert "simulators that share cores delay each other" in caplog.text


def test_episodes_are_handed_out_so_that_simulators_are_kept() -> None:
    specs = [EpisodeSpec("suite", task, episode, None) for task in range(3) for episode in range(2)]
    work = WorkList(specs)
    assert work.take(None) == specs[0]
    assert work.take(("suite", 0), [("suite", 1)]) == specs[1]  # the one it has
    assert work.take(("suite", 0), [("suite", 1)]) == specs[4]  # one that nobody is at
    assert work.take(None, [("suite", 1), ("suite", 2)]) == specs[2]  # else the one with the most left
    work.put_back(specs[4])
    assert work.take(("suite", 2)) == specs[4]
    assert len(work) == 2
