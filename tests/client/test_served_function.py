"""A plain function, served by one program and evaluated by the command in another: no checkpoint at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from eval_process import TIMEOUT_S, finish_eval, start_eval

from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE

PROGRAM = """
import sys

import numpy as np

from async_delta_inference.transport import serve


def go_to_the_middle(observation):
    return np.full((8, 2), 256.0, np.float32)


with serve(go_to_the_middle, "shm://mine"):
    print("served", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends when its standard input does."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sockets"))
    (tmp_path / "controller.py").write_text(PROGRAM)
    command = [sys.executable, "controller.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "served\n"
            yield
            process.stdin.close()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()


@pytest.mark.usefixtures("program")
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_served_function_is_evaluated_by_the_command(tmp_path: Path) -> None:
    process = start_eval(tmp_path, "--server_address=shm://mine", "--actions_per_chunk=8")
    evaluated = finish_eval(process, tmp_path)
    assert evaluated.info["overall"]["async"]["policy"] == "__main__.go_to_the_middle"
    assert "evaluated __main__.go_to_the_middle\n" in evaluated.stdout
    assert "pusht/0" in evaluated.stdout
    paths = sorted((evaluated.output_dir / "trajectories").glob("*.npz"))
    assert len(paths) == 2
    for path in paths:
        with np.load(path) as arrays:
            assert arrays["action"].shape == (20, 2)
            assert (arrays["action"] == 256).all()
            assert set(arrays["chunk_length"]) == {8}
