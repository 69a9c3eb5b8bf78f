"""Ctrl-C in a terminal, which reaches the command and all of its workers: what is complete is kept, nothing remains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE
from async_delta_inference.transport.testing import eventually

pytestmark = pytest.mark.timeout(120)

PROGRAM = Path(__file__).parents[2] / "support" / "evaluate_worlds.py"
HANGS = {f"0 {episode}": "hang" for episode in (4, 5)}


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def living(session: int) -> list[int]:
    """Processes of a session, but for those that only wait to be looked at."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("does", [{}, HANGS], ids=["all go on", "all simulators hang"])
@pytest.mark.parametrize("interrupts", [1, 3])
def test_complete_episodes_are_kept_and_nothing_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: dict[str, str], interrupts: int
) -> None:
    (tmp_path / "sockets").mkdir(mode=0o700)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sockets"))
    flags = {"n_episodes": 10_000, "n_envs": "2", "clock": "simulated", "inference_delay": "1", "does": does}
    command = [sys.executable, str(PROGRAM), json.dumps(flags | {"output_dir": str(tmp_path / "out")})]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: len(lines(tmp_path)) >= 4 or process.poll() is not None)
        for _ in range(interrupts):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.002)  # Two that are pending at the same time are one.
        began_s = time.monotonic()
        _, stderr = process.communicate(timeout=60.0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "interrupted"
    kept = lines(tmp_path)
    assert [line["failures"] for line in kept if line.get("failures")] == []
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == len(kept)
    eventually(lambda: living(process.pid) == [])
    assert list((tmp_path / "sockets").glob("*.sock")) == []
    assert time.monotonic() - began_s < 40.0
