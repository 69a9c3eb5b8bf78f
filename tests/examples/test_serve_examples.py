"""The examples that serve a function: as their docstrings say, in processes of their own, for one short episode."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from async_delta_inference.client import cli
from async_delta_inference.transport import Observation
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE

EXAMPLES = Path(__file__).parents[2] / "examples"
END_S = 60.0


@contextmanager
def running(example: str, ended_by: int) -> Iterator[None]:
    """An example, until a signal, which ends it without an error."""
    process = subprocess.Popen([sys.executable, str(EXAMPLES / example)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
        process.send_signal(ended_by)
        assert process.wait(END_S) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("example", "name", "ended_by"),
    [
        ("serve_function.py", "__main__.push", signal.SIGTERM),
        ("serve_torch_module.py", "__main__.act", signal.SIGINT),
    ],
)
def test_example_is_evaluated_without_a_checkpoint(
    example: str, name: str, ended_by: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "r"))
    documented = "async-delta-eval --server_address=shm://mine --env.type=pusht --actions_per_chunk=8"
    assert documented in (EXAMPLES / example).read_text()
    short = ["--env.episode_length=20", "--n_episodes=1", "--clock=simulated", "--inference_delay=0"]
    quiet = ["--progress=false", f"--output_dir={tmp_path / 'run'}", "--connect_timeout_s=120"]
    with running(example, ended_by):
        assert cli.main([*documented.split()[1:], *short, *quiet]) == 0
    assert list((tmp_path / "r").glob("*.sock")) == []
    info = json.loads((tmp_path / "run" / "eval_info.json").read_text())
    assert info["overall"]["async"]["policy"] == name
    assert len(info["per_task"][0]["metrics"]["sum_rewards"]) == 1


def test_controller_goes_round_the_block_and_pushes_it_to_the_goal() -> None:
    from serve_function import GOAL, GREY, push

    frame = np.full((384, 384, 3), 255, np.uint8)
    frame[60:90, 180:210] = GREY  # Above the goal, at y = 100 of 512.
    above, below = (np.array([260.0, y], np.float32) for y in (20.0, 380.0))
    onwards = push(Observation({"image": frame}, above))
    assert onwards.shape == (8, 2)
    assert np.all(np.diff(onwards[:, 1]) > 0), "from behind the block it goes towards the goal"
    path = push(Observation({"image": frame}, below))
    assert abs(path[-1, 0] - 260.0) > 50, "from the goal's side it goes round the block"
    assert GOAL.imag > 200
