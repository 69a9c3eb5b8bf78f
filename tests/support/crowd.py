"""Several sessions with one served policy, which all ask at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from pusht_policies import observe

from async_delta_inference.transport import SessionSpec, open_transport

__all__ = ["answers_at_once"]

ANSWER_TIMEOUT_S = 60.0


def answers_at_once(uri: str, specs: Sequence[SessionSpec], steps: int) -> list[np.ndarray]:
    """What sessions of small policies for PushT are answered, by step and session."""
    found = []
    with ExitStack() as stack:
        transports = [stack.enter_context(open_transport(uri)) for _ in specs]
        for transport, spec in zip(transports, specs, strict=True):
            transport.connect(spec)
        for step in range(steps):
            for i, transport in enumerate(transports):
                observation = observe(100 * step + i)
                observation.timestep, observation.must_go = step, True
                transport.send_observation(observation)
            for transport in transports:
                chunk = transport.receive_actions(ANSWER_TIMEOUT_S)
                assert chunk is not None
                found.append(chunk.actions.copy())
    return found
