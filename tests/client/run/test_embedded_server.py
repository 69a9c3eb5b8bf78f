"""The server that an evaluation starts for itself: real processes, ended and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import psutil
import pytest
from stub_environment import StubEnvironment

from async_delta_inference import stages
from async_delta_inference.client import RunObserver, SimClient, SimClientConfig
from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.errors import PeerGoneError, PeerUnreachableError
from async_delta_inference.stage_trace import read_marks
from async_delta_inference.transport.testing import eventually

START_S = 240.0
"""For a child that loads lerobot on a busy machine."""


def children() -> list[psutil.Process]:
    """This process's: the servers that it started for itself."""
    found = psutil.Process().children()
    return [process for process in found if "async_delta_inference.server_adapter" in process.cmdline()]


# Within a program.


@pytest.mark.timeout(2 * START_S)
def test_evaluation_starts_and_ends_its_own_server(pusht_checkpoint: Path, tmp_path: Path) -> None:
    """Over the default transport; what the server marked while it served stands in the trace."""
    from lerobot.envs.configs import PushtEnv

    config = SimClientConfig(
        env=PushtEnv(episode_length=40),
        policy_type="act",
        pretrained_name_or_path=str(pusht_checkpoint),
        actions_per_chunk=20,
        n_episodes=1,
        clock="simulated",
        inference_delay=0,
        chunk_size_threshold=0.0,
        output_dir=tmp_path / "out",
        trace=tmp_path / "trace.json",
        progress=False,
    )
    client = SimClient(config)
    client.start()
    (server,) = children()
    assert [episode.length for episode in client.control_loop().episodes] == [40]
    assert server.is_running()
    client.stop()
    assert not server.is_running()
    assert client.result.policy == f"act from {pusht_checkpoint}"
    assert "serving shm://" in (tmp_path / "out" / "server.log").read_text()
    marked = {stage for stage, timestep, _ in read_marks(tmp_path / "trace.json") if timestep == 20}
    assert marked == {stages.BEGIN, *stages.STAGES} - {stages.WAIT}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "trace.json"]


SERVES_A_FUNCTION = """
import async_delta_inference.server_adapter.cli as cli
from async_delta_inference.transport import FunctionPolicy

cli._make_policy = lambda host: FunctionPolicy(lambda observation: [[0.0, 0.0]] * 10)
"""


class KillAtStep(RunObserver):
    """Kills the embedded server once, at one step of the run."""

    def __init__(self, step: int) -> None:
        self._steps_left = step

    def stepped(self, environment: Any, outcome: Any) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            (server,) = children()
            server.kill()


@pytest.mark.timeout(START_S)
def test_run_does_not_wait_for_a_child_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would, for ever here, for somebody else's server: nobody starts this one again."""
    # Python runs it in every process: this child loads no policy of LeRobot's, and is what it always is otherwise.
    (tmp_path / "sitecustomize.py").write_text(SERVES_A_FUNCTION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    # Nobody asks the hub for what was loaded from it before.
    (tmp_path / "hub" / "models--some--checkpoint").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = SimClientConfig(
        env=None,
        policy_type="act",
        pretrained_name_or_path="some/checkpoint",
        actions_per_chunk=10,
        n_episodes=1,
        reconnect_timeout_s=1e6,
        output_dir=tmp_path / "out",
        progress=False,
    )
    environment = StubEnvironment(max_episode_steps=10**6)
    client = SimClient(config, environments=[environment], observers=[KillAtStep(25)])
    with pytest.raises(PeerGoneError):
        client.run()
    assert environment.closed
    assert children() == []
    # Shared memory ends with its server in any case; gRPC, which would wait, takes half a minute to load here.
    assert client._transport is not None
    assert client._transport.options.reconnect_timeout_s == 0.0


# By the command, whatever happens to it.


def command(checkpoint: Path, output_dir: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "async_delta_inference.client"),
        *("--env.type=pusht", "--policy_type=act", f"--pretrained_name_or_path={checkpoint}"),
        *("--actions_per_chunk=20", f"--output_dir={output_dir}", *flags),
    ]


def wait_for_two_episodes(process: subprocess.Popen[bytes], output_dir: Path, log: Path) -> None:
    """The second one's file says that the first one is wholly booked."""

    def are_there() -> bool:
        assert process.poll() is None, log.read_text()
        return len(list((output_dir / "trajectories").glob("*.npz"))) >= 2

    while True:
        try:
            return eventually(are_there)
        except AssertionError:
            assert process.poll() is None, log.read_text()


@pytest.mark.timeout(2 * START_S)
@pytest.mark.parametrize(
    ("sign", "transport"), [(signal.SIGINT, "shm"), (signal.SIGTERM, "grpc"), (signal.SIGKILL, "shm")]
)
def test_server_ends_with_its_client_whatever_happens(
    pusht_checkpoint: Path, tmp_path: Path, sign: int, transport: str
) -> None:
    output_dir, log = tmp_path / "out", tmp_path / "log"
    flags = ("--n_episodes=1000", "--env.episode_length=10", "--fps=100", "--save_trajectories=true")
    arguments = command(pusht_checkpoint, output_dir, *flags, f"--transport={transport}")
    with (
        log.open("wb") as out,
        subprocess.Popen(arguments, cwd=tmp_path, stdout=out, stderr=out) as process,
    ):
        wait_for_two_episodes(process, output_dir, log)
        (server,) = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(sign)
        process.wait(30)
    gone, alive = psutil.wait_procs([server], timeout=30)
    assert not alive, gone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]  # no logs/ folder, no stray files
    if sign != signal.SIGKILL:
        assert process.returncode == 130
        # What was completed is reported all the same.
        assert json.loads((output_dir / "eval_info.json").read_text())["overall"]["n_episodes"] >= 1
        assert "Traceback" not in log.read_text()


# The child alone.


def test_child_is_told_what_to_serve_and_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with EmbeddedServer("coo", tmp_path / "new" / "server.log", tmp_path / "trace.json") as server:
        child = psutil.Process(server.pid)
        eventually(lambda: bool(child.cmdline()))  # For a moment a new program has none.
        assert {"--transport=coo", f"--trace={tmp_path}/trace.json"} <= set(child.cmdline())
        # A Ctrl-C at the terminal must not reach it.
        assert os.getsid(server.pid) == server.pid
        # Two threads of torch's fight with the simulator over the cores.
        assert child.environ()["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with EmbeddedServer("coo", tmp_path / "server.log") as server:
        child = psutil.Process(server.pid)
        eventually(lambda: bool(child.cmdline()))
        assert "--transport=coo" in child.cmdline()
        assert not [word for word in child.cmdline() if word.startswith("--trace")]
        assert child.environ()["OMP_NUM_THREADS"] == "3"


def test_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lerobot").mkdir()
    (tmp_path / "lerobot" / "__init__.py").write_text("raise RuntimeError('this lerobot is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        EmbeddedServer("grpc", tmp_path / "server.log") as server,
        pytest.raises(PeerUnreachableError, match=r"^[^\n]*this lerobot is broken[^\n]*$"),
    ):
        server.wait_until_ready(START_S)


def test_server_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    """And leaves neither the process nor a file descriptor."""
    before = set(os.listdir("/proc/self/fd"))
    with (
        EmbeddedServer("grpc", tmp_path / "server.log") as server,
        pytest.raises(PeerUnreachableError, match="not ready within 0 s"),
    ):
        server.wait_until_ready(0.0)
    server.stop()
    assert not psutil.pid_exists(server.pid)
    assert set(os.listdir("/proc/self/fd")) == before


def test_transport_that_stays_within_a_process_is_refused(tmp_path: Path) -> None:
    with (
        EmbeddedServer("inproc", tmp_path / "server.log") as server,
        pytest.raises(PeerUnreachableError, match="--transport=inproc reaches nobody"),
    ):
        server.wait_until_ready(START_S)


def test_what_lies_in_the_working_directory_is_none_of_the_childs_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "random", "logging", "grpc", "datasets/__init__", "lerobot/__init__"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise RuntimeError('the wrong {name}')")
    monkeypatch.chdir(tmp_path)
    with (
        EmbeddedServer("inproc", tmp_path / "server.log") as server,
        pytest.raises(PeerUnreachableError, match="--transport=inproc reaches nobody"),
    ):
        server.wait_until_ready(START_S)
