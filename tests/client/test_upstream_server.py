"""LeRobot's server as a user starts it: ``python -m lerobot.async_inference.policy_server``, no code of ours in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lerobot.envs.configs import PushtEnv

from async_delta_inference.client import RunObserver, SimClient, SimClientConfig
from async_delta_inference.errors import PeerUnreachableError

START_S = 400.0
"""For a process that loads lerobot on a busy machine."""

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the server, every time at the same address."""
    servers: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / f"server{len(servers)}.log").open("wb") as log:
            command = [sys.executable, "-m", "lerobot.async_inference.policy_server"]
            # It joins host and port with a colon, which makes a Unix socket of this: no port that another may take.
            flags = [f"--host=unix:{tmp_path}/socket", "--port=1", "--inference_latency=0"]
            servers.append(subprocess.Popen([*command, *flags], cwd=tmp_path, stdout=log, stderr=log))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        server.wait()


class AtStep(RunObserver):
    """Does something once, at one step of the run."""

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        self._steps_left, self._action = step, action

    def stepped(self, environment: Any, outcome: Any) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            self._action()


def config(checkpoint: Path, tmp_path: Path, **flags: Any) -> SimClientConfig:
    return SimClientConfig(
        env=PushtEnv(episode_length=60),
        policy_type="act",
        pretrained_name_or_path=str(checkpoint),
        actions_per_chunk=20,
        n_episodes=1,
        server_address=f"unix:{tmp_path}/socket:1",
        output_dir=tmp_path / "out",
        overwrite=True,
        clock="simulated",
        inference_delay="3",
        progress=False,
        connect_timeout_s=START_S,
        **flags,
    )


@pytest.mark.timeout(4 * START_S)
def test_episode_survives_a_restart_of_the_server_and_ends_with_its_death(
    pusht_checkpoint: Path, tmp_path: Path, start: Start
) -> None:
    """One test, since each start takes half a minute."""
    servers = [start()]

    def kill() -> None:
        servers[-1].kill()
        servers[-1].wait()

    def restart() -> None:
        kill()
        servers.append(start())

    flags = config(pusht_checkpoint, tmp_path, reconnect_timeout_s=START_S, inference_timeout_s=10.0)
    (episode,) = SimClient(flags, observers=[AtStep(25, restart)]).run().episodes
    assert episode.length == 60
    # Asked before the kill, answered by the server that came after it, and asynchronous on both sides of it.
    assert [chunk.requested_step for chunk in episode.chunks] == [0, 10, 20, 30, 40, 50]
    assert [chunk.queued for chunk in episode.chunks] == [0, 7, 7, 7, 7, 7]

    impatient = config(pusht_checkpoint, tmp_path, reconnect_timeout_s=1.0)
    with pytest.raises(PeerUnreachableError, match="did not come back within 1 s"):
        SimClient(impatient, observers=[AtStep(25, kill)]).run()
