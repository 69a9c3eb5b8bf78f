"""`evaluate_stub` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
TIMEOUT_S = 60.0


def stub_command(**flags: Any) -> list[str]:
    """The command line; paths among the flags are relative to where it runs."""
    return [sys.executable, str(SUPPORT / "evaluate_stub.py"), json.dumps({"output_dir": "out"} | flags)]


@contextmanager
def stub_process(folder: Path, **flags: Any) -> Iterator[subprocess.Popen[str]]:
    """Started, with its output in pipes; at the end of the block it is gone."""
    with subprocess.Popen(
        stub_command(**flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_stub(folder: Path, **flags: Any) -> subprocess.CompletedProcess[str]:
    """To its end."""
    return subprocess.run(
        stub_command(**flags), cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def episodes_kept(folder: Path) -> int:
    """How many the results in ``out`` hold; 0 without results."""
    path = folder / "out" / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
