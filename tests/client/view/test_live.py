"""``--display_data``: what is handed over, and that nobody waits for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_run import Run

from async_delta_inference.client.view.live import LiveView
from async_delta_inference.errors import ConfigError


class Shown:
    """Keeps what it is shown; lets nothing through while it is closed."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Any]]] = []
        self.open = threading.Event()

    def __call__(self, step: int, seen: dict[str, Any]) -> None:
        self.open.wait(30.0)
        self.steps.append((step, seen))


def test_every_step_is_shown(run: Run) -> None:
    shown = Shown()
    shown.open.set()
    run.observers = [LiveView(shown)]
    episode = run.episode(inference_delay="2", aggregate_fn_name="latest_only")
    steps = [(step, seen) for step, seen in shown.steps if "action" in seen]
    assert [step for step, _ in steps] == list(range(30))
    np.testing.assert_array_equal(np.stack([seen["action"] for _, seen in steps]), episode.actions)
    np.testing.assert_array_equal(np.stack([seen["observation/state"] for _, seen in steps]), episode.states)
    assert [int(seen["queue"]) for _, seen in steps] == episode.queue_sizes.tolist()
    assert sum("chunks" in seen for _, seen in steps) == len(episode.chunks)
    framed = [step for step, seen in steps if "observation/images/camera" in seen]
    assert framed == [c.requested_step for c in episode.chunks]


def test_a_viewer_that_hangs_delays_no_step(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    shown = Shown()
    view = LiveView(shown)
    run.observers = [view]
    client = run.client(n_episodes=5)
    client.start()
    started_s = time.monotonic()
    opener = threading.Timer(1.0, shown.open.set)
    opener.start()
    client.control_loop()
    client.stop()
    opener.join()
    assert client.result.eval_s < 1.0 + 4.0
    assert time.monotonic() - started_s < 20.0
    assert view.left_out > 50
    assert "were not shown" in caplog.text


def test_a_viewer_that_fails_ends_no_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def sink(step: int, seen: dict[str, Any]) -> None:
        raise OSError("gone")

    run.observers = [LiveView(sink)]
    assert run.episode().length == 30
    assert caplog.text.count("the live view ended") == 1


def test_rerun_saves_a_recording(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs the extra viz")
    path = tmp_path / "run.rrd"
    assert run.episode(display_data=True, display_save=path).length == 30
    assert path.stat().st_size > 1000


def test_half_an_address_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="--display_ip and --display_port"):
        run.client(display_data=True, display_ip="127.0.0.1")
