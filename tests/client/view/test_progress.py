"""What a user sees while a run goes on."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console
from small_result import episode as made_up
from stub_environment import StubEnvironment

from async_delta_inference.client import EpisodeResult, EpisodeSpec, EvaluationResult, StepResult
from async_delta_inference.client.record.events import EpisodeEnded, RunStarted
from async_delta_inference.client.view.progress import ProgressBar
from async_delta_inference.client.view.run_progress import RunProgress


def run(console: Console) -> None:
    """Two episodes of three steps, the second one successful, of a run of two for each of two tasks."""
    bar, environment = ProgressBar(console), StubEnvironment()
    bar.run_started([environment, StubEnvironment(task_id=1)], 2)
    for episode in range(2):
        bar.episode_started(environment, episode)
        for _ in range(3):
            bar.stepped(environment, StepResult(0.0, False, False, False))
        result = EpisodeResult("stub", 0, episode, 1000 + episode, None, success=bool(episode), rewards=np.zeros(3))
        bar.episode_ended(environment, result)
    bar.run_ended(EvaluationResult())


def test_bar_tells_steps_episodes_and_the_running_success_rate() -> None:
    screen = io.StringIO()
    run(Console(file=screen, force_terminal=True, width=120))
    for expected in ("stub/0 episode 1", "3/30", "2/4", "success 1/2"):
        assert expected in screen.getvalue()


def test_log_file_gets_a_line_per_episode() -> None:
    log = io.StringIO()
    run(Console(file=log, force_terminal=False, width=120))
    lines = [line for line in log.getvalue().splitlines() if "after 3 steps" in line]
    assert len(lines) == 2
    assert lines[0].startswith("stub/0 episode 0: failure")
    assert lines[1].endswith("success 1/2 (2 of 4)")


def test_progress_of_a_resumed_run_counts_what_was_there() -> None:
    kept = [made_up("group", 0, index, [0.0], success) for index, success in enumerate((True, True, False))]
    output = io.StringIO()
    progress = RunProgress(Console(file=output, width=200))
    specs = tuple(EpisodeSpec("group", 0, episode, episode, None) for episode in range(4))
    progress(RunStarted(specs, specs[3:], 1))
    progress.take_up(kept)
    progress(EpisodeEnded(0, made_up("group", 0, 3, [0.0], False), ()))
    progress.stop()
    assert "success 2/4" in output.getvalue()
    assert "(4 of 4)" in output.getvalue()
