"""Policies that look at several observations, asynchronously: the same run twice, and beside another session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lerobot.envs.configs import PushtEnv
from pusht_policies import build_for_pusht

from async_delta_inference.client import EpisodeResult, RunObserver, SimClient, SimClientConfig
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import serve

DELAY, EPISODES, STEPS, SEEDS = 2, 2, 15, (1000, 2000)


class InStep(RunObserver):
    """Two runs take every step together, so that their requests come in turn."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def stepped(self, environment: Any, outcome: Any) -> None:
        self._barrier.wait(60)


@pytest.fixture(params=["diffusion", "vqbet"])
def address(
    request: pytest.FixtureRequest, policy: LeRobotPolicy, runtime_folder: Path, tmp_path: Path
) -> Iterator[str]:
    """Of a server, whose name is the policy's type."""
    if request.param == "diffusion" and find_spec("diffusers") is None:
        pytest.skip("diffusion needs diffusers: lerobot[diffusion]")
    build_for_pusht(request.param, tmp_path / "policy")
    with serve(policy, f"shm://{request.param}") as server:
        yield server.uris[0]


def run(address: str, folder: Path, seed: int, *observers: RunObserver) -> list[EpisodeResult]:
    config = SimClientConfig(
        env=PushtEnv(episode_length=STEPS),
        pretrained_name_or_path=str(folder / "policy"),
        n_episodes=EPISODES,
        seed=seed,
        server_address=address,
        output_dir=folder / f"out_{seed}",
        overwrite=True,
        progress=False,
        clock="simulated",
        inference_delay=str(DELAY),
    )
    return SimClient(config, observers=observers).run().episodes


def as_bytes(episodes: list[EpisodeResult]) -> list[tuple[bytes, bytes, bytes]]:
    return [(one.actions.tobytes(), one.states.tobytes(), one.rewards.tobytes()) for one in episodes]


def test_runs_depend_on_nothing_but_their_seed(address: str, tmp_path: Path) -> None:
    alone = [run(address, tmp_path, seed) for seed in SEEDS]
    expected = [as_bytes(episodes) for episodes in alone]
    assert as_bytes(run(address, tmp_path, SEEDS[0])) == expected[0]
    assert expected[0] != expected[1]
    for episode in alone[0]:
        assert len(episode.chunks) > 2
        assert len(episode.rewards) == STEPS
        assert {chunk.merged_step - chunk.requested_step for chunk in episode.chunks[1:]} == {DELAY}
    barrier = threading.Barrier(len(SEEDS))
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        together = [pool.submit(run, address, tmp_path, seed, InStep(barrier)) for seed in SEEDS]
        assert [as_bytes(one.result()) for one in together] == expected
