"""Signals at the worst moments: every episode that was complete is kept, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_process import TIMEOUT_S, episodes_kept, stub_process

from async_delta_inference.client.run import interrupts
from async_delta_inference.client.run.interrupts import interrupts_held, interrupts_kept
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE
from async_delta_inference.transport.testing import eventually

ENDLESS: dict[str, Any] = {"n_episodes": 100_000, "save_trajectories": True}


@pytest.fixture(autouse=True)
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


def trajectories(folder: Path) -> int:
    """Episodes that were complete."""
    return len(list((folder / "out").glob("trajectories/0*.npz")))


def ended(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    return stderr


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT, signal.SIGINT, signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP, signal.SIGTERM],
        [signal.SIGQUIT],
    ],
)
def test_signals_within_milliseconds_lose_no_episode(
    tmp_path: Path, sockets: Path, signals: list[signal.Signals]
) -> None:
    with stub_process(tmp_path, address="shm://here", **ENDLESS) as process:
        eventually(lambda: trajectories(tmp_path) >= 2)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.002)  # Two that are pending at the same time are one.
        stderr = ended(process)
    assert process.returncode == 130, stderr
    assert stderr == "interrupted\n"
    assert episodes_kept(tmp_path) == trajectories(tmp_path)
    delays = json.loads((tmp_path / "out" / "inference_delays.json").read_text())
    assert delays["delay_steps"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "eval_info.json",
        "inference_delays.json",
        "results.jsonl",
        "run.yaml",
        "trajectories",
    ]
    assert list(sockets.glob("*.sock")) == []


def test_kill_loses_no_episode_but_the_one_it_is_at(tmp_path: Path) -> None:
    with stub_process(tmp_path, **ENDLESS) as process:
        eventually(lambda: trajectories(tmp_path) >= 3)
        process.kill()
        ended(process)
    assert trajectories(tmp_path) - 1 <= episodes_kept(tmp_path) <= trajectories(tmp_path)


@pytest.mark.parametrize("moment", ["close 1", "close 2"])
def test_second_interrupt_while_a_simulator_closes_loses_nothing(tmp_path: Path, moment: str) -> None:
    """An interrupt in the middle of an episode closes it twice: with its task, and with the run."""
    does = {"step 2": "pause", moment: "pause"}
    with stub_process(tmp_path, does=does, **ENDLESS) as process:
        for _ in range(2):
            eventually((tmp_path / "mark").exists)
            (tmp_path / "mark").unlink()
            process.send_signal(signal.SIGINT)
        stderr = ended(process)
    assert process.returncode == 130, stderr
    assert stderr == "interrupted\n"
    assert episodes_kept(tmp_path) == 2


def test_interrupt_while_results_are_written_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing is the slow part on many a disk."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, time\nfsync = os.fsync\n"
        "def slow(descriptor):\n"
        "    fsync(descriptor)\n    if 'npz' not in os.readlink(f'/proc/self/fd/{descriptor}'):\n        return\n"
        "    pathlib.Path('mark').touch()\n    time.sleep(0.3)\n"
        "os.fsync = slow\n"
    )
    with stub_process(tmp_path, **ENDLESS) as process:
        eventually((tmp_path / "mark").exists)
        process.send_signal(signal.SIGINT)
        stderr = ended(process)
    assert process.returncode == 130, stderr
    assert episodes_kept(tmp_path) == trajectories(tmp_path) == 1
    assert list((tmp_path / "out").rglob("*.partial*")) == []


def test_signal_that_was_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    """As ``nohup`` asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stub_process(tmp_path, n_episodes=10, save_trajectories=True) as process:
            eventually(lambda: trajectories(tmp_path) >= 2)
            process.send_signal(signal.SIGHUP)
            stderr = ended(process)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.returncode == 0, stderr
    assert episodes_kept(tmp_path) == 10


# For programs of the user's.


def held(work: Callable[[], object]) -> None:
    with interrupts_held():
        work()


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_interrupt_comes_at_the_end_of_what_it_waits_for() -> None:
    done = []

    def work() -> None:
        press_ctrl_c()
        press_ctrl_c()
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        held(work)
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):  # the program's own handler is back
        press_ctrl_c()


def test_one_that_waits_within_another_waits_for_both() -> None:
    done = []

    def work() -> None:
        held(press_ctrl_c)
        done.append("the outer one")

    with pytest.raises(KeyboardInterrupt):
        held(work)
    assert done == ["the outer one"]


def test_error_and_interrupt_are_both_told() -> None:
    def work() -> None:
        press_ctrl_c()
        raise ValueError("meanwhile")

    with pytest.raises(KeyboardInterrupt) as info:
        held(work)
    assert isinstance(info.value.__context__, ValueError)


def test_what_hangs_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_LONGEST_S", -1.0)
    done = []

    def work() -> None:
        press_ctrl_c()
        done.append("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        held(work)
    assert done == []


def swallowed(work: Callable[[], object]) -> None:
    """As a physics engine does that calls back into Python."""
    with contextlib.suppress(KeyboardInterrupt):
        work()


def test_swallowed_interrupt_is_raised_again() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        swallowed(press_ctrl_c)
    with interrupts_kept() as kept:
        swallowed(press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            kept.check()
        kept.check()  # once


def test_handler_that_raises_nothing_is_the_programs_own_affair() -> None:
    came = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        with interrupts_kept() as kept:
            press_ctrl_c()
            kept.check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]


@pytest.mark.parametrize("moment", ["reset 2", "step 3", "close 1"])
def test_interrupt_that_the_simulator_swallows_ends_the_run(tmp_path: Path, moment: str) -> None:
    with stub_process(tmp_path, does={moment: "swallow"}, n_episodes=50, save_trajectories=True) as process:
        stderr = ended(process)
    assert process.returncode == 130, stderr
    assert stderr == "interrupted\n"
    assert episodes_kept(tmp_path) == (50 if moment == "close 1" else int(moment[-1]))


def test_other_threads_are_never_interrupted_and_need_nothing() -> None:
    entered = []

    def enter() -> None:
        with interrupts_held():
            entered.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]
