"""A breach is found; a run that keeps the limits passes."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import check
import pytest
from harness.limits import LIMITS, check_limits

Results = dict[str, Any]


@pytest.fixture
def results() -> Results:
    """A run that keeps every limit exactly."""
    rows: dict[str, dict[str, Any]] = {}
    for limit in LIMITS:
        row = rows.setdefault(json.dumps(limit.row), {**limit.row, "ratios": {}})
        row["ratios"][limit.value[-1]] = {"median": limit.limit, "low": limit.limit, "high": limit.limit}
    soak = {"transport": "shm", "payload": "state", "n": 100_000, "growth_mb": {"client": 0.0, "server": 0.1}}
    return {"rows": list(rows.values()), "memory": [soak]}


def run_check(monkeypatch: pytest.MonkeyPatch, folder: Path, results: Results) -> int:
    path = folder / "latency.json"
    path.write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", ["check.py", str(path)])
    return check.main()


def test_run_that_keeps_the_limits_passes(results: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_check(monkeypatch, tmp_path, results) == 0


@pytest.mark.parametrize("number", range(len(LIMITS)))
def test_every_breach_is_found(
    results: Results, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = LIMITS[number]
    doctored = copy.deepcopy(results)
    for row in doctored["rows"]:
        if all(row[key] == value for key, value in limit.row.items()):
            row["ratios"][limit.value[-1]]["median"] *= 0.9 if limit.at_least else 1.1
    assert run_check(monkeypatch, tmp_path, doctored) == 1
    assert f"not kept: {limit.what}" in capsys.readouterr().out


def test_row_that_is_missing_is_a_breach(results: Results) -> None:
    results["rows"].pop()
    assert not all(finding.kept for finding in check_limits(results))


def test_growing_memory_is_a_breach(results: Results) -> None:
    results["memory"][0]["growth_mb"]["client"] = 5.0
    assert not all(finding.kept for finding in check_limits(results))
