"""A real server over shared memory that prepares the next batch meanwhile, as with a GPU; the policy is on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import numpy as np
from pusht_policies import build_for_pusht, observe, spec

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import Request, open_transport
from async_delta_inference.transport.policy import Launched
from async_delta_inference.transport.server import make_server

SESSIONS, STEPS, ANSWER_TIMEOUT_S = 5, 4, 60.0


class AsOnAGpu(LeRobotPolicy):
    """Looks ahead, and counts how often."""

    overlaps = True
    prepared = 0

    def prepare(self, request: Request) -> None:
        self.prepared += 1
        super().prepare(request)

    def launch(self, requests: Sequence[Request]) -> Launched:
        launched = super().launch(requests)
        launched.is_done = lambda: False  # type: ignore[method-assign]
        return launched


def answers_of(policy: LeRobotPolicy, folder: Path, max_batch: int) -> Sequence[np.ndarray]:
    """By step and session, which all ask at once."""
    found = []
    with make_server(policy, f"shm://ahead-{token_hex(4)}", max_batch=max_batch) as server, ExitStack() as stack:
        server.start()
        transports = []
        for seed in range(SESSIONS):
            transports.append(stack.enter_context(open_transport(server.uris[0])))
            transports[-1].connect(spec(folder, seed=seed))
        for step in range(STEPS):
            for i, transport in enumerate(transports):
                observation = observe(100 * step + i)
                observation.timestep, observation.must_go = step, True
                transport.send_observation(observation)
            for transport in transports:
                chunk = transport.receive_actions(ANSWER_TIMEOUT_S)
                assert chunk is not None
                found.append(chunk.actions.copy())
    return found


def test_every_session_gets_what_it_would_get_alone(tmp_path: Path) -> None:
    folder = build_for_pusht("act", tmp_path)
    policy = AsOnAGpu()
    together = answers_of(policy, folder, max_batch=2)
    assert policy.prepared
    alone = answers_of(LeRobotPolicy(), folder, max_batch=1)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * 80.0)
