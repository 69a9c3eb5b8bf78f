"""Evaluations of stub environments over a scripted transport: what the tests of the control loop run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stub_environment import StubEnvironment

from async_delta_inference.client import EpisodeResult, EvaluationResult, RunObserver, SimClient, SimClientConfig
from async_delta_inference.transport import Observation, Policy
from async_delta_inference.transport.testing.scripted import ScriptedAnswer, ScriptedTransport, timestep_policy


class Run:
    """What a test changes before it runs: the environments, the policy, and how long an answer takes.

    Args:
        folder: For the runs' files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clients = 0
        self.environments = [StubEnvironment()]
        self.policy: ScriptedAnswer | Policy = timestep_policy(rows=10)
        self.polls: int | Callable[[Observation], int] = 0
        self.silent = False
        self.observers: Iterable[RunObserver] = ()
        self.transport: ScriptedTransport
        """The last client's."""

    def client(self, **flags: Any) -> SimClient:
        """One synchronous episode in the simulated clock, unless the flags say otherwise."""
        self._clients += 1
        folder = self.folder / f"out{self._clients}"
        flags = {"n_episodes": 1, "actions_per_chunk": 50, "clock": "simulated", "output_dir": folder} | flags
        if flags["clock"] == "simulated" and not any(name.startswith("inference_delay") for name in flags):
            flags["inference_delay"] = "0"
        config = SimClientConfig(env=None, progress=False, **flags)
        self.transport = ScriptedTransport(self.policy, self.polls, config.transport_options())
        self.transport.silent = self.silent
        return SimClient(config, environments=self.environments, transport=self.transport, observers=self.observers)

    def __call__(self, **flags: Any) -> EvaluationResult:
        return self.client(**flags).run()

    def episode(self, **flags: Any) -> EpisodeResult:
        return self(**flags).episodes[0]

    @property
    def asked(self) -> list[int]:
        """The timesteps of the observations that were sent."""
        return [observation.timestep for observation in self.transport.sent]


def executed(episode: EpisodeResult) -> list[int]:
    """The timesteps that the executed actions were computed for."""
    return episode.actions[:, 0].astype(int).tolist()
