"""async-delta-eval of a stub environment and a served function: a process that starts in a second, without lerobot.

    python evaluate_stub.py '{"n_episodes": 3, "output_dir": "out", "does": {"step 2": "exit"}}'

``does``: what the simulator does besides, and when: ``<method> <episode>``, or ``close <how often>``, to one of
`DEEDS`. ``address``: where the function is served.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stub_environment import StubEnvironment

from async_delta_inference.client import Environment, EpisodeSpec, SimClientConfig, StepResult, register_environment
from async_delta_inference.client.cli import _evaluate
from async_delta_inference.command_line import run_command
from async_delta_inference.transport import Observation, serve


def fill_the_disk() -> None:
    """That of the working directory, to the last byte."""
    with open("filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass


def leave_a_mark_and_pause() -> None:
    """Says where it is, for somebody who interrupts it there."""
    Path("mark").touch()
    time.sleep(0.5)


def swallow_an_interrupt() -> None:
    """As a physics engine does that calls back into Python, and cannot pass an exception on."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


DEEDS: dict[str, Callable[[], object]] = {
    "exit": lambda: sys.exit(3),
    "fill": fill_the_disk,
    "pause": leave_a_mark_and_pause,
    "swallow": swallow_an_interrupt,
    "print": lambda: print("the simulator says something"),
}


class Stub(StubEnvironment):
    """Does something now and then."""

    def __init__(self, does: dict[str, str]) -> None:
        super().__init__(max_episode_steps=10)
        self._does = does
        self._closed_times = 0

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        super().reset(spec, render=render)
        self._do(f"reset {len(self.seeds) - 1}")

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        outcome = super().step(action, render=render)
        if self.state()[0] == 1:
            self._do(f"step {len(self.seeds) - 1}")
        return outcome

    def close(self) -> None:
        super().close()
        self._closed_times += 1
        self._do(f"close {self._closed_times}")

    def _do(self, moment: str) -> None:
        if moment in self._does:
            DEEDS[self._does[moment]]()


def eight_zeros(observation: Observation) -> list[list[float]]:
    return [[0.0, 0.0]] * 8


def main() -> int:
    flags: dict[str, Any] = {"progress": False} | json.loads(sys.argv[1])
    does = flags.pop("does", {})

    @register_environment("stub")
    def make_stub(config: Any) -> list[Environment]:
        return [Stub(does)]

    with serve(eight_zeros, flags.pop("address", "inproc://stub")) as server:
        env = SimpleNamespace(type="stub")
        return _evaluate(SimClientConfig(env=env, actions_per_chunk=8, server_address=server.uris[0], **flags))


if __name__ == "__main__":
    sys.exit(run_command(main))
