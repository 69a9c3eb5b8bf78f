"""A policy that runs out of memory, and a client that dies while its frames are copied: everybody else goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_act import observe, spec

from async_delta_inference.errors import PolicyError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import Observation
from async_delta_inference.transport.testing import eventually

from .test_device_path import ANSWER_TIMEOUT_S, answer, connected, served

CLIENT = """
import sys
from small_act import observe, spec
from async_delta_inference.transport import open_transport

with open_transport(sys.argv[1]) as transport:
    transport.connect(spec(sys.argv[2], device=sys.argv[3]))
    for timestep in range(1_000_000):
        transport.send_observation(observe(timestep, must_go=True))
        print("sent", flush=True)
        transport.receive_actions(60.0)
"""


def test_a_policy_that_runs_out_of_memory_is_an_error_of_one_inference(checkpoint: Path, device: torch.device) -> None:
    policy = LeRobotPolicy()
    with served(policy, max_batch=2) as uri, ExitStack() as stack:
        first, second = (connected(stack, uri, spec(checkpoint, device=str(device))) for _ in range(2))
        expected = answer(second, observe(1, must_go=True))
        assert policy.loaded is not None
        loaded = policy.loaded.policy
        ask = type(loaded).predict_action_chunk

        def greedy(self: Any, batch: Any, **given: Any) -> Any:
            if device.type == "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory (the CPU stands for a GPU here)")
            torch.empty(2**50, dtype=torch.uint8, device=device)  # raises

        type(loaded).predict_action_chunk = greedy
        try:
            first.send_observation(observe(2, must_go=True))
            with pytest.raises(PolicyError, match=r"--max_batch.*out of memory"):
                first.receive_actions(ANSWER_TIMEOUT_S)
        finally:
            type(loaded).predict_action_chunk = ask
        for transport in (first, second):
            assert np.array_equal(answer(transport, _again(observe(1, must_go=True))), expected)


def test_a_client_that_dies_while_its_frames_are_copied_takes_nobody_with_it(
    checkpoint: Path, device: torch.device
) -> None:
    policy = LeRobotPolicy()
    with served(policy, max_batch=2) as uri, ExitStack() as stack:
        other = connected(stack, uri, spec(checkpoint, device=str(device)))
        expected = answer(other, observe(7, must_go=True))
        for _ in range(3):
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, uri, str(checkpoint), str(device)],
                stdout=subprocess.PIPE,
                env=_environment(),
            )
            try:
                assert client.stdout is not None
                for _ in range(3):
                    assert client.stdout.readline() == b"sent\n"
                if device.type == "cuda":
                    # Whatever is copied from here on waits behind this: about a quarter of a second.
                    torch.cuda._sleep(500_000_000)
                client.stdout.readline()
            finally:
                client.send_signal(signal.SIGKILL)
                client.wait()
                client.stdout.close()
            eventually(lambda: len(policy._sessions) == 1)
            assert np.array_equal(answer(other, observe(7, must_go=True)), expected)


def _again(observation: Observation) -> Observation:
    """The same, seen later."""
    observation.timestep = 9
    return observation


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
