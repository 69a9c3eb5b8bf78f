"""The two policies that are compared, with a clock around their forward passes: ours, and LeRobot's PolicyServer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession
from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.transport import SessionSpec
from harness.gpu.forward_clock import Forward, ForwardClock

__all__ = ["TimedLeRobotPolicy", "timed_policy_server"]

_module: Any = load_policy_server_module()


class TimedLeRobotPolicy(LeRobotPolicy):
    """The product's policy, with `clock` around its forward passes.

    Args:
        pinned: Whether frames may be copied to a GPU from pinned slots, which is what the product does.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        super().__init__(pinned=pinned)
        self.clock = ForwardClock()

    def open(self, spec: SessionSpec) -> LeRobotSession:
        """A session of the product's."""
        session = super().open(spec)
        assert self.loaded is not None
        self.clock.attach(self.loaded.policy)
        return session

    @property
    def device(self) -> torch.device:
        """Of the policy, which is loaded."""
        assert self.loaded is not None
        return self.loaded.device

    @contextmanager
    def timed_forwards(self) -> Iterator[list[Forward]]:
        """Time forward passes within it; afterwards they are in the list."""
        forwards: list[Forward] = []
        self.clock.take()
        self.clock.recording = True
        try:
            yield forwards
        finally:
            self.clock.recording = False
            forwards += self.clock.take()


class _TimedPolicyServer(_module.PolicyServer):  # type: ignore[misc]
    """PolicyServer as it is, with `clock` around its policy's forward passes."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.clock = ForwardClock()

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As PolicyServer does it."""
        reply = super().SendPolicyInstructions(request, context)
        self.clock.attach(self.policy)
        return reply


def timed_policy_server() -> Any:
    """One that has loaded nothing yet, and pads no answer.

    On CUDA it computes with the settings of lerobot-eval, which ours has too: else TF32 would be compared with float32.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    return _TimedPolicyServer(_module.PolicyServerConfig(inference_latency=0.0))
