"""Output that nobody reads is no reason to lose an episode: closed pipes, full disks, terminals that are gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from stub_process import TIMEOUT_S, episodes_kept, stub_command

EPISODES = 20
"""Enough for the progress bar to be drawn several times after its reader went away."""
LOUD = {"progress": True, "does": {f"step {episode}": "print" for episode in range(EPISODES)}}


def in_shell(folder: Path, redirection: str) -> tuple[int, str]:
    """The command's own exit code, and what came through."""
    script = f'"$@" {redirection}; echo "code ${{PIPESTATUS[0]}}" >&3'
    run = subprocess.run(
        ["bash", "-c", f"exec 3>&1; {script}", "bash", *stub_command(n_episodes=EPISODES, **LOUD)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    *output, code = run.stdout.splitlines()
    return int(code.removeprefix("code ")), "\n".join(output) + run.stderr


@pytest.mark.parametrize(
    "redirection",
    [
        "2>&1 | head -1",
        "| true",
        "2> >(true)",
        ">&-",
        "<&- >&- 2>&-",
        "> /dev/full 2>&1",
    ],
)
def test_output_that_goes_nowhere_costs_nothing(tmp_path: Path, redirection: str) -> None:
    code, output = in_shell(tmp_path, redirection)
    assert episodes_kept(tmp_path) == EPISODES
    assert code == 0, output
    assert "Traceback" not in output
    assert "Exception ignored" not in output


def test_letters_that_the_encoding_lacks_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, output = in_shell(tmp_path, "| cat")
    assert (episodes_kept(tmp_path), code) == (EPISODES, 0), output
    assert "wrote out/eval_info.json" in output


def on_terminal(command: Sequence[str], folder: Path, terminal: int) -> subprocess.Popen[bytes]:
    """All of its output on a terminal, which is not the one that controls it."""
    return subprocess.Popen(command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal)


def test_terminal_that_is_closed_costs_nothing(tmp_path: Path) -> None:
    """Every write to it fails from then on; the bar moves on a terminal, from a thread of its own."""
    ours, theirs = os.openpty()
    process = on_terminal(stub_command(n_episodes=EPISODES, **LOUD), tmp_path, theirs)
    try:
        os.close(theirs)
        assert os.read(ours, 1)
        os.close(ours)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert episodes_kept(tmp_path) == EPISODES
