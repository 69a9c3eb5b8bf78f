"""Results that cannot be written: what was there before stays, one line says so, and the run goes on."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from control_run import Run
from stub_environment import StubEnvironment
from stub_process import episodes_kept, stub_command

from async_delta_inference.client import RunObserver, SimClient
from async_delta_inference.client.record.output_folder import OutputFolder

EVERYTHING: dict[str, Any] = {
    "n_videos": 1,
    "save_trajectories": True,
    "debug_visualize_queue_size": True,
    "plot_latency": True,
}
FILES = [
    "eval_info.json",
    "inference_delays.json",
    "latency.png",
    "queue_size.png",
    "results.jsonl",
    "run.yaml",
    "trajectories/00000_stub_0_0.npz",
    "videos/stub_0/eval_episode_0_failure.mp4",
]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """That of a test outlives it on no account: pytest writes files, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_file_longer_than(n_bytes: int) -> Iterator[None]:
    """A limit of the system's: a write beyond it fails, as on a disk that gets full in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_disk_that_gets_full_keeps_the_results_there_are(tmp_path: Path) -> None:
    """A real one, in a mount namespace of its own. It is full from the second episode on."""
    command = stub_command(n_episodes=3, save_trajectories=True, does={"step 1": "fill"})
    (tmp_path / "disk").mkdir()
    (tmp_path / "left").mkdir()
    script = (
        'mount -t tmpfs -o size=200k none disk || exit 77; (cd disk && "$@"); code=$?; cp -r disk/out left; exit $code'
    )
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if run.returncode in (1, 77) and "Operation not permitted" in run.stderr + run.stdout:
        pytest.skip("mounting is not permitted here")
    info = json.loads((tmp_path / "left" / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1
    assert episodes_kept(tmp_path / "left") == 3  # Their lines had room in the last block.
    assert files_in(tmp_path / "left" / "out") == [*FILES[:2], *FILES[4:7]]
    names = ["trajectories/00001_stub_0_1.npz", "eval_info.json", "inference_delays.json"]
    names.append("trajectories/00002_stub_0_2.npz")
    said = [f"not written: out/{name}: No space left on device" for name in names]
    assert sorted(run.stderr.splitlines()) == sorted(said)
    assert "stub/0" in run.stdout  # the table, of all three
    assert "wrote" not in run.stdout
    assert run.returncode == 1


def test_every_file_that_cannot_be_written_is_told_and_ends_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    trace = run.folder / "trace.json"
    client = run.client(n_episodes=2, trace=trace, **EVERYTHING)
    with no_file_longer_than(100):
        assert len(client.run().episodes) == 2
    unwritten = {str(path.relative_to(client.output_dir)) for path in client.unwritten if path != trace}
    assert unwritten == {*FILES, "trajectories/00001_stub_0_1.npz"}
    assert trace in client.unwritten
    assert set(client.unwritten.values()) == {"File too large"}
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert sorted(lines) == sorted(f"not written: {path}: {reason}" for path, reason in client.unwritten.items())
    assert files_in(run.folder) == []


def test_video_that_was_not_written_is_not_listed(run: Run) -> None:
    run.environments = [StubEnvironment(max_episode_steps=1000)]  # Its video is longer than any other file.
    client = run.client(n_videos=1)
    with no_file_longer_than(8000):
        client.run()
    assert [path.suffix for path in client.unwritten] == [".mp4"]
    assert json.loads((client.output_dir / "eval_info.json").read_text())["overall"]["video_paths"] == []


def test_results_of_an_earlier_run_outlive_a_run_that_cannot_write(run: Run) -> None:
    before = run.client(n_episodes=2)
    before.run()
    older = (before.output_dir / "eval_info.json").read_bytes()
    after = run.client(output_dir=before.output_dir, overwrite=True)
    with no_file_longer_than(100):
        after.run()
    assert (after.output_dir / "eval_info.json").read_bytes() == older


def test_file_that_could_be_written_in_the_end_is_not_missed(run: Run) -> None:
    class Limited(RunObserver):
        def episode_started(self, *_: Any) -> None:
            self.limit = no_file_longer_than(100)
            self.limit.__enter__()

        def episode_kept(self, *_: Any) -> None:
            self.limit.__exit__(None, None, None)

    run.observers = [Limited()]
    client = run.client()
    client.run()
    assert client.unwritten == {}
    assert files_in(client.output_dir) == [*FILES[:2], *FILES[4:6]]


# Folders that go.


class Between(RunObserver):
    """Does something to the output folder between the first two episodes."""

    def __init__(self, run: Run, act: Any) -> None:
        self._act = act
        run.observers = [self]

    def episode_kept(self, result: Any) -> None:
        if len(result.episodes) == 1:
            self._act()


def test_folder_that_was_removed_is_made_anew(run: Run) -> None:
    Between(run, lambda: shutil.rmtree(run.folder / "out1"))
    client = run.client(n_episodes=3, **EVERYTHING)
    client.run()
    assert client.unwritten == {}
    assert json.loads((client.output_dir / "eval_info.json").read_text())["overall"]["n_episodes"] == 3
    expected = [*FILES[:6], "trajectories/00001_stub_0_1.npz", "trajectories/00002_stub_0_2.npz"]
    assert files_in(client.output_dir) == expected


def test_folder_that_another_run_has_taken_meanwhile_is_left_to_it(run: Run) -> None:
    other = OutputFolder(run.folder / "out1")

    def take_it() -> None:
        shutil.rmtree(other.path)
        other.claim()

    Between(run, take_it)
    client: SimClient = run.client(n_episodes=2)
    assert len(client.run().episodes) == 2
    assert all("another run uses it" in reason for reason in client.unwritten.values())
    assert len(client.unwritten) == 4
    assert not (other.path / "eval_info.json").exists()
    other.release()
    assert files_in(other.path) == []


def test_parent_that_became_a_file_is_told(run: Run) -> None:
    def put_a_file_in_its_place() -> None:
        shutil.rmtree(run.folder / "out1")
        (run.folder / "out1").touch()

    Between(run, put_a_file_in_its_place)
    client = run.client(n_episodes=2)
    assert len(client.run().episodes) == 2
    assert len(client.unwritten) == 4
