"""A real server over shared memory that prepares the next batch meanwhile, as with a GPU; the policy is on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

import numpy as np
from crowd import answers_at_once
from pusht_policies import build_for_pusht, spec

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import Request
from async_delta_inference.transport.policy import Launched
from async_delta_inference.transport.server import make_server

SESSIONS, STEPS = 5, 4


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


def answers_of(policy: LeRobotPolicy, folder: Path, max_batch: int) -> list[np.ndarray]:
    with make_server(policy, f"shm://ahead-{token_hex(4)}", max_batch=max_batch) as server:
        server.start()
        return answers_at_once(server.uris[0], [spec(folder, seed=seed) for seed in range(SESSIONS)], STEPS)


def test_every_session_gets_what_it_would_get_alone(tmp_path: Path) -> None:
    folder = build_for_pusht("act", tmp_path)
    policy = AsOnAGpu()
    together = answers_of(policy, folder, max_batch=2)
    assert policy.prepared
    alone = answers_of(LeRobotPolicy(), folder, max_batch=1)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * 80.0)
