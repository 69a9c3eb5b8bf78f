"""Many sessions at one server, small: what is counted, and what counts as a breach."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sessions
from harness.crowd import exchange_together, idle_cpu_s
from harness.payloads import parse_payload
from harness.servers import ServerProcess
from sessions import Counts

from async_delta_inference.errors import AsyncDeltaError, SetupRefusedError

KEPT = Counts(seconds=2.0, each=[90, 100], alone_seconds=1.0, alone=(100, 110), idle_cpu_s=0.01)


def test_sessions_exchange_at_once_and_wait_in_silence() -> None:
    payload = parse_payload("1x16x16")
    with ServerProcess("shm") as server:
        each = exchange_together(server, payload, clients=3, seconds=0.2)
        assert len(each) == 3
        assert min(each) > 0
        assert idle_cpu_s(server, payload, sessions=3, seconds=0.05) >= 0.0


def test_more_clients_than_can_be_told_apart_are_refused() -> None:
    with ServerProcess("shm") as server, pytest.raises(AsyncDeltaError, match="1 to 64"):
        exchange_together(server, parse_payload("state"), clients=65, seconds=0.1)


def test_client_that_fails_is_an_error() -> None:
    too_large = parse_payload("4x20000x20000")
    with ServerProcess("shm") as server, pytest.raises(SetupRefusedError):
        exchange_together(server, too_large, clients=2, seconds=0.1)


@pytest.mark.parametrize(
    ("counts", "broken"),
    [
        (KEPT, []),
        (replace(KEPT, alone=(150, 100)), ["all sessions' rate"]),
        (replace(KEPT, each=[70, 130]), ["slowest session"]),
        (replace(KEPT, idle_cpu_s=0.2), ["CPU of a server"]),
    ],
)
def test_every_breach_is_found(
    counts: Counts,
    broken: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [finding.what for finding in counts.findings() if not finding.kept]
    assert len(found) == len(broken)
    assert all(what.startswith(begin) for what, begin in zip(found, broken, strict=True))
    monkeypatch.setattr(sessions, "measure", lambda clients, seconds: counts)
    for flags, code in (([], 0), (["--check"], 1 if broken else 0)):
        monkeypatch.setattr(sys, "argv", ["sessions.py", f"--output_dir={tmp_path}", *flags])
        assert sessions.main() == code
    assert ("NO" in capsys.readouterr().out) is bool(broken)
    written = json.loads((tmp_path / "sessions.json").read_text())
    assert written["each"] == list(counts.each)
    assert {"findings", "environment", "alone", "idle_cpu_s"} <= set(written)
