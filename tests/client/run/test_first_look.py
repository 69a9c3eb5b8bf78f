"""What differs from the training is told once, before the first step of a run, by one simulator or by many."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_world import WorldConfig, make_policy

from async_delta_inference.client import RunObserver, SimClient, SimClientConfig, evaluate
from async_delta_inference.client.run import forking
from async_delta_inference.transport.testing import ServedPeer

ALARM = "camera camera: another size than the policy was trained with"


@pytest.fixture(scope="module")
def server() -> Iterator[ServedPeer]:
    with ServedPeer("shm", make_policy=make_policy) as peer:
        yield peer


@pytest.fixture
def nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "_PRELOADED_IF_HERE", ())


def config(folder: Path, server: ServedPeer, side: int, task_count: int) -> SimClientConfig:
    """Of a world whose camera has 4 x 4 pixels, and a checkpoint that was trained with others."""
    inputs = {"observation.images.camera": {"shape": [3, side, side]}, "observation.state": {"shape": [2]}}
    checkpoint = {"type": "act", "input_features": inputs, "output_features": {"action": {"shape": [2]}}}
    (folder / "config.json").write_text(json.dumps(checkpoint))
    return SimClientConfig(
        env=WorldConfig(tasks=task_count),
        server_address=server.uri,
        pretrained_name_or_path=str(folder),
        actions_per_chunk=5,
        n_episodes=2,
        clock="simulated",
        inference_delay="1",
        output_dir=folder / "out",
        progress=False,
    )


class Steps(RunObserver):
    """What had been told when the first step was taken."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.told: str | None = None

    def stepped(self, environment: object, outcome: object) -> None:
        if self.told is None:
            self.told = self._caplog.text


def test_a_run_begins_with_what_differs(server: ServedPeer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps(caplog)
    SimClient(config(tmp_path, server, side=8, task_count=2), observers=[steps]).run()
    assert ALARM in str(steps.told)
    assert caplog.text.count(ALARM) == 1


def test_of_many_simulators_one_tells_it(
    server: ServedPeer, tmp_path: Path, caplog: pytest.LogCaptureFixture, nothing_to_load: None
) -> None:
    result = evaluate(config(tmp_path, server, side=8, task_count=2), n_envs=2)
    assert len(result.episodes) == 4
    assert caplog.text.count(ALARM) == 1


def test_a_pair_that_fits_is_not_talked_about(
    server: ServedPeer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        SimClient(config(tmp_path, server, side=4, task_count=1)).run()
    assert caplog.text == ""
