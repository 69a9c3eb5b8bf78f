"""Policies that are given their noise, a row for each observation: what each would draw if it were asked alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["RowNoise", "row_noise"]

RowNoise = Callable[[], torch.Tensor]
"""Draws the noise of one observation from the global generators, (1, ...), as the policy itself would."""


def row_noise(policy: Any, policy_type: str) -> RowNoise | None:
    """How the noise of this policy is drawn; None where it takes none, or draws more while it infers."""
    make = _BY_TYPE.get(policy_type)
    return None if make is None else make(policy)


def _of_flow(policy: Any) -> RowNoise:
    """Of a policy that integrates a flow from noise on."""
    config, device = policy.config, next(policy.parameters()).device
    return lambda: policy.model.sample_noise((1, config.chunk_size, config.max_action_dim), device)


def _of_diffusion(policy: Any) -> RowNoise | None:
    """DDPM draws at every step of the denoising; DDIM begins with noise and draws none."""
    config, weights = policy.config, next(policy.parameters())
    if config.noise_scheduler_type != "DDIM":
        return None
    shape = (1, config.horizon, config.action_feature.shape[0])
    return lambda: torch.randn(shape, dtype=weights.dtype, device=weights.device)


_BY_TYPE: dict[str, Callable[[Any], RowNoise | None]] = {
    "diffusion": _of_diffusion,
    "pi0": _of_flow,
    "pi05": _of_flow,
    "smolvla": _of_flow,
}
