"""How long one forward pass takes with 1, 2, 4 ... observations in it, nothing else around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from harness.gpu.budget import Budget
from harness.gpu.forward_clock import ForwardClock
from harness.payloads import Payload

__all__ = ["describe_policy", "measure_batches"]

_WARMUP = 3
"""The first pass of a size looks for the fastest convolutions."""
_MOST_S = 5.0
"""For one size, the warm-up left out."""


def describe_policy(policy_type: str, policy: Any) -> dict[str, Any]:
    """What was asked: the type, how many parameters, of which types and on which device."""
    parameters = list(policy.parameters())
    by_type: dict[str, int] = {}
    for parameter in parameters:
        name = str(parameter.dtype).removeprefix("torch.")
        by_type[name] = by_type.get(name, 0) + parameter.numel()
    return {
        "policy": policy_type,
        "parameters": sum(by_type.values()),
        "parameters_by_dtype": by_type,
        "device": str(parameters[0].device),
    }


def measure_batches(
    policy_type: str,
    loaded: Any,
    clock: ForwardClock,
    payload: Payload,
    sizes: Sequence[int],
    *,
    repeats: int,
    budget: Budget,
) -> Iterator[dict[str, Any]]:
    """One row for every size for which there is time and memory.

    Args:
        policy_type: For the rows.
        loaded: A `LoadedPolicy`.
        clock: Attached to its policy.
        payload: What is observed.
        sizes: Observations in a forward pass, growing.
        repeats: Forward passes of each size, at most.
        budget: Of this policy.
    """
    for size in sizes:
        if not budget.allows(budget.longest_step_s):
            return
        with budget.step():
            try:
                row = _measure(loaded, clock, payload, size, repeats)
            except torch.OutOfMemoryError as exc:
                yield {"policy": policy_type, "batch_size": size, "error": str(exc).partition("\n")[0]}
                return
        yield {"policy": policy_type, **row}


def _measure(loaded: Any, clock: ForwardClock, payload: Payload, size: int, repeats: int) -> dict[str, Any]:
    with torch.inference_mode(), loaded.autocast():
        batch = loaded.preprocessor(_observed(payload, size))
        if loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(loaded.device)
        for _ in range(_WARMUP):
            _ask(loaded, batch)
        forward_ms = _time(loaded, clock, batch, repeats)
    p50_ms, p99_ms = (float(np.percentile(forward_ms, percent)) for percent in (50, 99))
    return {
        "batch_size": size,
        "forwards": len(forward_ms),
        "forward_p50_ms": round(p50_ms, 3),
        "forward_p99_ms": round(p99_ms, 3),
        "samples_per_s": round(1000 * size / p50_ms, 1),
        "peak_memory_mb": _peak_memory_mb(loaded.device),
    }


def _time(loaded: Any, clock: ForwardClock, batch: dict[str, Any], repeats: int) -> list[float]:
    """Each alone: the next one begins when the device is through with the last."""
    clock.take()
    clock.recording = True
    try:
        budget, forward_ms = Budget(_MOST_S), list[float]()
        while len(forward_ms) < repeats and (budget.left_s > 0 or not forward_ms):
            _ask(loaded, batch)
            (forward,) = clock.take()
            forward_ms.append(forward.duration_ns / 1e6)
        return forward_ms
    finally:
        clock.recording = False


def _ask(loaded: Any, batch: dict[str, Any]) -> None:
    loaded.policy.predict_action_chunk(dict(batch)).sum().item()  # Which waits for the device.


def _observed(payload: Payload, size: int) -> dict[str, Any]:
    """What lerobot-eval gives a preprocessor of so many environments."""
    generator = torch.Generator().manual_seed(0)
    images = {
        f"observation.images.{name}": torch.rand(size, channels, height, width, generator=generator)
        for name, (height, width, channels) in payload.features.images.items()
    }
    state = torch.randn(size, payload.features.state_dim, generator=generator)
    return {**images, "observation.state": state, "task": [payload.observation().task] * size}


def _peak_memory_mb(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None
