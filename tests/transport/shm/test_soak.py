"""Many exchanges of random shapes: nothing torn, nothing lost that may not be, memory flat on both sides."""

from __future__ import annotations

import random
import string
from pathlib import Path

import numpy as np
import psutil
import pytest
from shm_actor import expected_actions, fill, make_observation, policy_spec
from shm_processes import Actor, actor, left_behind

from async_delta_inference.errors import PolicyError
from async_delta_inference.transport import Observation, ObservationFeatures
from async_delta_inference.transport.messages import MAX_TASK_BYTES
from async_delta_inference.transport.shm import ShmTransport

MAX_GROWTH_BYTES = 8 << 20


def random_features(rng: random.Random) -> ObservationFeatures:
    cameras = {
        f"camera{i}": (rng.randrange(1, 65), rng.randrange(1, 65), rng.choice([1, 3, 4]))
        for i in range(rng.randrange(4))
    }
    return ObservationFeatures(tuple(f"s{i}" for i in range(rng.randrange(1, 40))), cameras)


def random_task(rng: random.Random) -> str:
    length = rng.choice([0, 1, 20, 500, MAX_TASK_BYTES])
    return "t" * min(length, 1) + "".join(rng.choices(string.ascii_letters, k=max(0, length - 1)))


def answered(transport: ShmTransport, sent: list[Observation]) -> None:
    """Receive until the newest is answered: in order, each the answer to what was sent under its timestep."""
    by_timestep = {observation.timestep: observation for observation in sent}
    last = -1
    while last != sent[-1].timestep:
        chunk = transport.receive_actions(30.0)
        assert chunk is not None, "an answer was lost"
        assert chunk.timestep > last
        last = chunk.timestep
        assert chunk.timestamp_s == by_timestep[last].timestamp_s
        expected = expected_actions(by_timestep[last])
        assert chunk.actions.tobytes() == expected.tobytes(), f"torn or foreign frame at timestep {last}"


def one_session(rng: random.Random, exchanges: int) -> None:
    features = random_features(rng)
    with ShmTransport("here") as transport:
        transport.connect(policy_spec(features))
        timestep, task = 0, ""
        for _ in range(exchanges):
            if rng.randrange(8) == 0:
                task = random_task(rng)
            kind = rng.randrange(20)
            if kind == 0:  # a burst, of which the server may skip all but the last
                burst = [make_observation(timestep + i, features, task) for i in range(5)]
                for observation in burst:
                    transport.send_observation(observation)
                answered(transport, burst)
                timestep += 5
                continue
            if kind == 1:
                transport.send_observation(make_observation(timestep, features, "raise " + random_task(rng)[:3000]))
                with pytest.raises(PolicyError):
                    transport.receive_actions(30.0)
            elif kind < 11:
                loan = transport.loan_observation()
                fill(loan, np.random.default_rng(timestep))
                loan.timestep, loan.task, loan.timestamp_s = timestep, task, timestep / 8
                expected = loan.copy()
                transport.send_observation(loan)
                answered(transport, [expected])
            else:
                observation = make_observation(timestep, features, task)
                transport.send_observation(observation)
                answered(transport, [observation])
            timestep += 1


def memory_bytes(server: Actor) -> tuple[int, int]:
    return psutil.Process().memory_info().rss, psutil.Process(server.process.pid).memory_info().rss


@pytest.mark.parametrize("sessions", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_thousand_exchanges_in_each_of_many_sessions(shm_folder: Path, sessions: int) -> None:
    rng = random.Random(sessions)
    with actor("serve", "here") as server:
        server.wait_for("ready")
        for _ in range(3):
            one_session(rng, 300)
        before = memory_bytes(server)
        for _ in range(sessions):
            one_session(rng, 1000)
        for side, then, now in zip(("client", "server"), before, memory_bytes(server), strict=True):
            assert now - then < MAX_GROWTH_BYTES, f"the {side} grew by {(now - then) / 1e6:.1f} MB"
        assert server.end() == 0
    assert left_behind(shm_folder) == []
