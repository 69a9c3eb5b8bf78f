"""`ForwardClock`: how long a policy's forward passes last, without a wait that the policy does not make itself.

On CUDA the host comes back from a forward pass while the device still computes. So an event is recorded on the stream
of the forward pass before it and one after it, which costs some microseconds; the time between the two, on the device,
is read when somebody asks, after the device has come past both. Where the device is still busy when the forward pass
is called, with copies to it say, the first event waits for that: those copies are not the forward pass. Elsewhere it is
the time of the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Forward", "ForwardClock"]


@dataclass(frozen=True)
class Forward:
    """One forward pass.

    Args:
        duration_ns: Of it.
        rows: Observations in it.
    """

    duration_ns: int
    rows: int


class ForwardClock:
    """Records while `recording` is set; any number of policies, one at a time."""

    def __init__(self) -> None:
        self.recording = False
        self._timings: list[tuple[Callable[[], int], int]] = []

    def attach(self, policy: Any) -> None:
        """Time the calls of ``policy.predict_action_chunk`` from now on; a second time changes nothing.

        Args:
            policy: A ``torch.nn.Module`` of LeRobot's, loaded to its device.
        """
        if "predict_action_chunk" in vars(policy):
            return
        measure = _on_cuda if _is_on_cuda(policy) else _on_host
        original = policy.predict_action_chunk

        def predict_action_chunk(batch: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
            if not self.recording:
                chunk: torch.Tensor = original(batch, *args, **kwargs)
                return chunk
            chunk, duration = measure(lambda: original(batch, *args, **kwargs))
            self._timings.append((duration, len(chunk)))
            return chunk

        policy.predict_action_chunk = predict_action_chunk

    def take(self) -> list[Forward]:
        """The forward passes so far, in order, forgotten here; waits for the device to be through with them."""
        taken = self._timings[:]
        del self._timings[: len(taken)]
        return [Forward(duration(), rows) for duration, rows in taken]


_Measured = tuple[torch.Tensor, Callable[[], int]]


def _is_on_cuda(policy: Any) -> bool:
    return bool(next(policy.parameters()).is_cuda)


def _on_cuda(forward: Callable[[], torch.Tensor]) -> _Measured:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    chunk = forward()
    end.record()

    def duration_ns() -> int:
        end.synchronize()
        return round(begin.elapsed_time(end) * 1e6)

    return chunk, duration_ns


def _on_host(forward: Callable[[], torch.Tensor]) -> _Measured:
    start_ns = time.perf_counter_ns()
    chunk = forward()
    duration_ns = time.perf_counter_ns() - start_ns
    return chunk, lambda: duration_ns
