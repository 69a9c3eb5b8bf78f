"""What the tests of the control loop run."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)
