"""Serve a plain function: a controller for PushT, written by hand, that pushes the block towards the goal from behind.

::

    python examples/serve_function.py
    async-delta-eval --server_address=shm://mine --env.type=pusht --actions_per_chunk=8

The second command needs no checkpoint. The controller turns the block only by chance: it covers two fifths of the goal
on average, and PushT calls 95 % a success.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from async_delta_inference.transport import Observation, serve

GREY = (119, 136, 153)
"""The block's colour."""
GOAL = 227 + 284j
"""The centre of the goal's area; positions are complex numbers, x + iy, in the 512 units of PushT's table."""


def push(observation: Observation) -> np.ndarray:
    """From a frame and the agent's position to the next eight positions that it should go to, float32 (8, 2)."""
    image, agent = observation.images["image"], complex(*observation.state)
    rows, columns = np.nonzero(np.abs(image - np.float32(GREY)).sum(axis=2) < 40)
    block = complex(columns.mean(), rows.mean()) * 512 / len(image)
    away = (block - GOAL) / abs(block - GOAL)
    angle = np.angle((agent - block) / away)  # 0: the block lies between the agent and the goal.
    around = block + 110 * away * np.exp(1j * np.sign(angle) * max(0.0, abs(angle) - 0.8))
    onwards = agent - away * min(50.0, abs(block - GOAL))
    path = agent + (onwards - agent if abs(angle) < 0.3 else around - agent) * np.arange(1, 9) / 8
    return np.stack([path.real, path.imag], axis=1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), serve(push, "shm://mine") as server:
        print(f"serving {server.uris[0]}, until Ctrl-C", flush=True)
        server.wait()
