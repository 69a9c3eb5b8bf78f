"""One run a folder: one that is in use or holds results is refused, a default name is nobody else's."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from control_run import Run
from stub_environment import SOLVED, StubEnvironment
from stub_process import episodes_kept, run_stub, stub_process

from async_delta_inference.client import EpisodeSpec, SimClient, SimClientConfig
from async_delta_inference.client.record import output_folder
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport.testing import ScriptedTransport, eventually, timestep_policy

# In use.


def test_folder_of_a_run_that_goes_on_is_refused_until_it_ends(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    with stub_process(tmp_path, n_episodes=100_000) as process:
        eventually(lambda: episodes_kept(tmp_path) >= 1)
        again = run_stub(tmp_path, n_episodes=1, overwrite=True)
        assert again.returncode == 2
        (line,) = again.stderr.splitlines()
        assert line.startswith(f"error: --output_dir=out is in use by another run, process {process.pid} on ")
        assert "another --output_dir" in line
        kept = episodes_kept(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert episodes_kept(tmp_path) >= kept
    folder.claim(overwrite=True)
    folder.release()


def test_folder_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    with stub_process(tmp_path, n_episodes=100_000) as process:
        eventually(lambda: episodes_kept(tmp_path) >= 1)
        with pytest.raises(ConfigError, match="in use"):
            folder.claim(overwrite=True)
        process.kill()
        process.communicate(timeout=60)
    folder.claim(overwrite=True)
    folder.release()


def test_two_runs_of_one_program_do_not_share_a_folder_either(run: Run) -> None:
    first = run.client()
    first.start()
    with pytest.raises(ConfigError, match="in use by another run"):
        run.client(output_dir=first.output_dir).start()
    first.stop()
    second = run.client(output_dir=first.output_dir)
    second.run()
    assert (second.output_dir / "eval_info.json").is_file()


def test_one_of_many_gets_the_folder(tmp_path: Path) -> None:
    """All at once, again and again: a lock file is made, removed and made anew."""
    together = threading.Barrier(8)

    def try_it(_: int) -> OutputFolder | None:
        folder = OutputFolder(tmp_path / "out")
        together.wait()
        try:
            folder.claim()
        except ConfigError:
            folder = None
        together.wait()
        return folder

    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            (winner,) = [folder for folder in pool.map(try_it, range(8)) if folder is not None]
            winner.release()
    assert list((tmp_path / "out").iterdir()) == []


# Results of an earlier run.


@pytest.mark.parametrize(
    "name",
    [
        "eval_info.json",
        "inference_delays.json",
        "queue_size.png",
        "results.jsonl",
        "trajectories/00000_stub_0_0.npz",
        "videos/stub_0/eval_episode_0_success.mp4",
    ],
)
def test_folder_with_results_is_refused_with_the_remedy(run: Run, name: str) -> None:
    client = run.client()
    path = client.output_dir / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(ConfigError) as info:
        client.start()
    assert f"({name})" in str(info.value)
    assert "another --output_dir, --resume=true to run what is missing, or --overwrite=true" in str(info.value)
    assert path.read_text() == "precious"
    assert not (client.output_dir / ".in_use").exists()


def test_folder_with_other_things_is_taken_and_they_stay(run: Run) -> None:
    client = run.client(overwrite=True, n_videos=1, save_trajectories=True)
    others = ["notes.txt", "server.log", "videos/holiday.mp4", "videos/2024/eval.mp4", "trajectories/mine.npz"]
    for name in others:
        (client.output_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (client.output_dir / name).write_text("mine")
    client.run()
    assert [(client.output_dir / name).read_text() for name in others] == ["mine"] * len(others)
    again = run.client(output_dir=client.output_dir, overwrite=True)
    again.run()
    assert [(client.output_dir / name).read_text() for name in others] == ["mine"] * len(others)


def names(client: SimClient) -> list[str]:
    return sorted(str(path.relative_to(client.output_dir)) for path in client.output_dir.rglob("*") if path.is_file())


def test_results_that_are_replaced_leave_nothing_among_the_new_ones(run: Run) -> None:
    flags = {"n_videos": 2, "save_trajectories": True, "plot_latency": True}
    first = run.client(n_episodes=3, **flags)
    first.run()
    run.environments = [StubEnvironment(outcomes={5: SOLVED})]
    second = run.client(output_dir=first.output_dir, overwrite=True, n_videos=1, save_trajectories=True)
    second.run()
    assert names(second) == [
        "eval_info.json",
        "inference_delays.json",
        "results.jsonl",
        "run.yaml",
        "trajectories/00000_stub_0_0.npz",
        "videos/stub_0/eval_episode_0_success.mp4",
    ]


def test_results_are_replaced_only_by_results(run: Run) -> None:
    """A run that fails in its first episode has none."""
    first = run.client(n_episodes=2, n_videos=2, save_trajectories=True)
    first.run()
    before = {path: path.read_bytes() for path in first.output_dir.rglob("*") if path.is_file()}

    class Broken(StubEnvironment):
        def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
            raise EpisodeError("it broke")

    run.environments = [Broken()]
    with pytest.raises(EpisodeError):
        run.client(output_dir=first.output_dir, overwrite=True).run()
    assert {path: path.read_bytes() for path in first.output_dir.rglob("*") if path.is_file()} == before


# Default names.


def test_default_folder_is_nobody_elses_even_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Stopped(output_folder.datetime):
        @classmethod
        def now(cls, tz: object = None) -> output_folder.datetime:
            return cls(2025, 1, 2, 3, 4, 5)

    monkeypatch.setattr(output_folder, "datetime", Stopped)
    folders = []
    for _ in range(3):
        config = SimClientConfig(env=None, actions_per_chunk=10, n_episodes=1, progress=False)
        client = SimClient(
            config, environments=[StubEnvironment()], transport=ScriptedTransport(timestep_policy(rows=10))
        )
        client.run()
        assert (client.output_dir / "eval_info.json").is_file()
        folders.append(client.output_dir.as_posix())
    stem = "outputs/eval/2025-01-02/03-04-05_env_served"
    assert folders == [stem, f"{stem}_2", f"{stem}_3"]


def test_client_that_never_starts_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SimClient(SimClientConfig(env=None, actions_per_chunk=10), environments=[StubEnvironment()])
    assert list(tmp_path.iterdir()) == []
