"""``--inference_delay=auto``: how many steps this machine's inference takes, measured before the first episode."""

from __future__ import annotations

import statistics
import time

from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.control.chunk_source import ChunkSource
from async_delta_inference.client.control.robot_actions import RobotActions
from async_delta_inference.client.record.delays import delay_in_steps
from async_delta_inference.errors import TransportTimeout
from async_delta_inference.transport import Transport

__all__ = ["measure_inference_delay"]

_CHUNKS = 5
_EPISODE = 2**32
"""None of the run's, so that the server resets the policy before the first of those."""


def measure_inference_delay(
    transport: Transport, source: ChunkSource, queue: ActionQueue, task: str, fps: float, timeout_s: float
) -> int:
    """The median delay in steps, 1 at least, from blank observations: the environments are not touched.

    Args:
        transport: Connected.
        source: The chunks of that transport.
        queue: Stays empty; passes one timestep for each observation.
        task: Instruction given to the policy.
        fps: Control steps per second.
        timeout_s: For each answer.

    Raises:
        TransportError: The server failed, or did not answer in time.
    """
    latencies_s = []
    for _ in range(1 + _CHUNKS):
        started_s = time.perf_counter()
        observation = transport.loan_observation()
        for seen in observation.steps():
            seen.state[:] = 0
            for image in seen.images.values():
                image[:] = 128
        RobotActions(transport.prefix, queue).write_to(observation)
        observation.timestep = queue.next_timestep
        observation.episode = _EPISODE
        observation.task = task
        transport.send_observation(observation)
        if source.next_chunk(timeout_s) is None:
            raise TransportTimeout(f"no answer within {timeout_s:g} s while calibrating")
        latencies_s.append(time.perf_counter() - started_s)
        queue.skip()
    # The first one warms the policy up.
    return max(1, delay_in_steps(statistics.median(latencies_s[1:]), fps))
