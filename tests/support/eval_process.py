"""async-delta-eval in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 240.0
"""For an evaluation of seconds whose process, and perhaps its server's, loads lerobot on a busy machine."""


@dataclass
class Evaluated:
    """What the command left.

    Args:
        info: ``eval_info.json``.
        stdout: What it printed.
        output_dir: Its folder.
    """

    info: dict[str, Any]
    stdout: str
    output_dir: Path


def start_eval(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Two short episodes of PushT.

    Args:
        folder: To run in; results go to ``out`` in it.
        flags: What is evaluated.
        environment: Besides this process' own.
    """
    command = [
        *(sys.executable, "-m", "async_delta_inference.client", "--env.type=pusht", "--env.episode_length=20"),
        *("--n_episodes=2", "--fps=100", "--output_dir=out", "--save_trajectories=true", *flags),
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )


def finish_eval(process: subprocess.Popen[str], folder: Path) -> Evaluated:
    """Wait for its end, which must be a good one."""
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stdout + stderr
    info = json.loads((folder / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    return Evaluated(info, stdout, folder / "out")
