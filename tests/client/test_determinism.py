"""The simulated clock: the same run over either transport, on an idle machine and a loaded one, byte for byte."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.envs.configs import LiberoEnv, PushtEnv
from policy_server_peer import policy_server_peer
from random_act import build_random_act

from async_delta_inference.client import RunObserver, SimClient, SimClientConfig
from async_delta_inference.client.environments.libero import LiberoEnvironment
from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE
from async_delta_inference.transport.testing import ServedPeer

DELAY = 3


@contextmanager
def cpu_load(processes: int) -> Iterator[None]:
    """Processes that do nothing but compute."""
    burners = [
        multiprocessing.get_context("spawn").Process(target=_burn, args=(os.getpid(),)) for _ in range(processes)
    ]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def _burn(parent: int) -> None:
    while os.getppid() == parent:
        sum(range(100_000))


class Stutter(RunObserver):
    """Delays steps and freezes the server, differently each time: a machine that does something else, too."""

    def __init__(self, seed: int, server: ServedPeer) -> None:
        self._random = np.random.default_rng(seed)
        self._server = server

    def stepped(self, environment: Any, outcome: Any) -> None:
        time.sleep(float(self._random.choice([0.0, 0.0, 0.02])))
        if self._random.random() < 0.1:
            os.kill(self._server.pid, signal.SIGSTOP)
            threading.Timer(0.1, os.kill, (self._server.pid, signal.SIGCONT)).start()


class FinalStates(RunObserver):
    """All that the simulators are made of when an episode has ended, not only what a policy is shown of it."""

    def __init__(self) -> None:
        self.states: list[bytes] = []

    def episode_ended(self, environment: Any, result: Any) -> None:
        if isinstance(environment, LiberoEnvironment):
            self.states.append(environment._libero._env.get_sim_state().tobytes())
        else:
            simulator = environment._env.unwrapped
            bodies = [(*b.position, *b.velocity, b.angle, b.angular_velocity) for b in simulator.space.bodies]
            self.states.append(np.array(bodies).tobytes())


def trajectories(
    server: ServedPeer, folder: Path, stutter: int | None = None, **flags: Any
) -> list[tuple[bytes, bytes]]:
    """Per episode, its file's bytes and the final state of the simulator."""
    config = SimClientConfig(
        **{
            "policy_type": "act",
            "actions_per_chunk": 20,
            "n_episodes": 2,
            "server_address": server.uri,
            "output_dir": folder,
            "progress": False,
            "clock": "simulated",
            "inference_delay": str(DELAY),
            "save_trajectories": True,
        }
        | flags
    )
    final = FinalStates()
    SimClient(config, observers=[final] if stutter is None else [final, Stutter(stutter, server)]).run()
    files = sorted((folder / "trajectories").glob("*.npz"))
    assert len(files) == config.n_episodes
    return list(zip([path.read_bytes() for path in files], final.states, strict=True))


@pytest.mark.parametrize("on_starvation", ["wait", "skip"])
def test_transports_and_load_change_nothing(
    pusht_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_starvation: str
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sockets"))
    flags: dict[str, Any] = {
        "env": PushtEnv(episode_length=50),
        "pretrained_name_or_path": str(pusht_checkpoint),
        "on_starvation": on_starvation,
    }
    with policy_server_peer("grpc") as server:
        expected = trajectories(server, tmp_path / "grpc", **flags)
    with policy_server_peer("shm") as server:
        assert trajectories(server, tmp_path / "shm", **flags) == expected
        assert trajectories(server, tmp_path / "stutter", stutter=1, **flags) == expected
        with cpu_load(4):
            assert trajectories(server, tmp_path / "loaded", **flags) == expected
        assert trajectories(server, tmp_path / "filmed", n_videos=1, **flags) == expected
        assert trajectories(server, tmp_path / "always", render="always", **flags) == expected
    with np.load(tmp_path / "shm" / "trajectories" / "00000_pusht_0_0.npz") as episode:
        assert set(episode["chunk_delay_steps"][1:]) == {DELAY}
        assert episode["action"].shape == (50, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_libero_is_the_same_over_both_transports_and_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sockets"))
    env = LiberoEnv(
        task="libero_object", task_ids=[0], observation_height=128, observation_width=128, episode_length=80
    )
    (environment,) = make_environments(env)
    checkpoint = build_random_act(tmp_path / "act", environment.features, environment.action_dim)
    flags: dict[str, Any] = {"env": env, "pretrained_name_or_path": str(checkpoint), "actions_per_chunk": 50}
    with policy_server_peer("grpc") as server:
        expected = trajectories(server, tmp_path / "grpc", **flags)
    with policy_server_peer("shm") as server, cpu_load(2):
        assert trajectories(server, tmp_path / "shm", **flags) == expected
