"""A served policy that a test can look into, and what a client of it does, for tests of shared memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from shm_actor import ChecksumPolicy, expected_actions, make_observation, policy_spec

from async_delta_inference.transport import Observation, SessionSpec, TransportOptions
from async_delta_inference.transport.shm import ShmTransport


class ProbedPolicy(ChecksumPolicy):
    """Lets a test look at the observation while the server has it."""

    def __init__(self) -> None:
        self.probe: Callable[[Observation], object] = lambda observation: None
        self.probed: list[object] = []

    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:
        self.probed.append(self.probe(observation))
        return super().answer(observation, release)


def connected(spec: SessionSpec | None = None, **options: float) -> ShmTransport:
    transport = ShmTransport("here", TransportOptions(connect_timeout_s=10.0, **options))
    transport.connect(spec or policy_spec())
    return transport


def exchange(transport: ShmTransport, timestep: int, task: str = "") -> None:
    observation = make_observation(timestep, task=task)
    transport.send_observation(observation)
    chunk = transport.receive_actions(30.0)
    assert chunk is not None
    assert chunk.actions.tobytes() == expected_actions(observation).tobytes()
