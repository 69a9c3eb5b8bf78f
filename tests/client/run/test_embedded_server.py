"""The server that an evaluation starts for itself: real processes, ended and killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.errors import PeerUnreachableError
from async_delta_inference.transport.testing.contract import eventually

START_S = 240.0
"""For a child that loads lerobot on a busy machine."""


def command(checkpoint: Path, output_dir: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "async_delta_inference.client"),
        *("--env.type=pusht", "--policy_type=act", f"--pretrained_name_or_path={checkpoint}"),
        *("--actions_per_chunk=20", f"--output_dir={output_dir}", *flags),
    ]


def serves(process: subprocess.Popen[str], output_dir: Path) -> Callable[[], bool]:
    """Whether the first episode has been completed."""

    def first_episode_done() -> bool:
        assert process.poll() is None, "it ended early"
        # The second one's file says that the first one is wholly booked.
        return len(list((output_dir / "trajectories").glob("*.npz"))) >= 2

    return first_episode_done


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.timeout(2 * START_S)
def test_evaluation_starts_and_ends_its_own_server(pusht_checkpoint: Path, tmp_path: Path) -> None:
    """From the command line to eval_info.json; the tests below do the same over the default transport."""
    flags = ("--n_episodes=2", "--env.episode_length=40", "--fps=100", "--transport=grpc")
    done = subprocess.run(
        command(pusht_checkpoint, tmp_path / "out", *flags),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pusht/0" in done.stdout
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    assert info["per_task"][0]["metrics"]["successes"] == [False, False]
    assert "serving grpc://" in (tmp_path / "out" / "server.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # no logs/ folder, no stray files


@pytest.mark.timeout(4 * START_S)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_server_ends_with_its_client_whatever_happens(pusht_checkpoint: Path, tmp_path: Path, sign: int) -> None:
    output_dir = tmp_path / "out"
    flags = (
        "--n_episodes=1000",
        "--env.episode_length=10",
        "--fps=100",
        "--save_trajectories=true",
        "--transport=grpc",
    )
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            command(pusht_checkpoint, output_dir, *flags), cwd=tmp_path, stdout=log, stderr=log, text=True
        ) as process,
    ):
        first_episode_done = serves(process, output_dir)
        while True:
            try:
                eventually(first_episode_done)
                break
            except AssertionError:
                assert process.poll() is None, (tmp_path / "log").read_text()
        (server,) = children(process)
        process.send_signal(sign)
        process.wait(30)
    gone, alive = psutil.wait_procs([server], timeout=30)
    assert not alive, gone
    if sign != signal.SIGKILL:
        assert process.returncode == 130
        # What was completed is reported all the same.
        assert json.loads((output_dir / "eval_info.json").read_text())["overall"]["n_episodes"] >= 1
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lerobot").mkdir()
    (tmp_path / "lerobot" / "__init__.py").write_text("raise RuntimeError('this lerobot is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        EmbeddedServer("grpc", 20.0, tmp_path / "server.log") as server,
        pytest.raises(PeerUnreachableError, match=r"^[^\n]*this lerobot is broken[^\n]*$"),
    ):
        server.wait_until_ready(START_S)


def test_server_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    with (
        EmbeddedServer("grpc", 20.0, tmp_path / "server.log") as server,
        pytest.raises(PeerUnreachableError, match="not ready within 0 s"),
    ):
        server.wait_until_ready(0.0)
    assert not psutil.pid_exists(server.pid)
