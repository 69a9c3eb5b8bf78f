"""``python -m`` imports nothing of the working directory, as the installed commands do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("random", "statistics", "config", "queue", "logging", "dataclasses", "grpc", "lerobot", "numpy")


@pytest.mark.parametrize("package", ["client", "server_adapter"])
def test_files_of_the_working_directory_do_not_stand_in_for_modules(package: str, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    command = [sys.executable, "-m", f"async_delta_inference.{package}", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--server_address" in done.stdout
