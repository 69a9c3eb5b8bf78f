"""Processors of checkpoints that have none: until 2025 a policy normalised by itself, from buffers in its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from async_delta_inference.errors import SetupRefusedError

__all__ = ["rebuilt_processors", "statistics_in"]

logger = logging.getLogger(__name__)

_PREFIXES = ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_", "normalize_targets.buffer_")


def statistics_in(weights: Path, names: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """The normalisation statistics that a checkpoint's weights hold.

    Args:
        weights: The safetensors file.
        names: The policy's inputs and outputs: a buffer's name is one of them with its dots as underscores.
    """
    by_buffer = {name.replace(".", "_"): name for name in names}
    statistics: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(weights, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a dictionary
            for prefix in _PREFIXES:
                if key.startswith(prefix):
                    buffer, _, statistic = key.removeprefix(prefix).rpartition(".")
                    if buffer in by_buffer:
                        statistics.setdefault(by_buffer[buffer], {})[statistic] = tensors.get_tensor(key)
    return statistics


def rebuilt_processors(config: Any, weights: Path | None, path: str) -> tuple[Any, Any]:
    """Pre- and postprocessor made of the statistics in the weights, as LeRobot makes them of a dataset's.

    Args:
        config: LeRobot's, of the policy.
        weights: The checkpoint's; None where there are none at hand.
        path: The checkpoint, for messages.

    Raises:
        SetupRefusedError: The weights have no statistics of what the policy normalises.
    """
    from lerobot.policies import make_pre_post_processors

    names = {**(config.input_features or {}), **(config.output_features or {})}
    statistics = {} if weights is None else statistics_in(weights, names)
    modes = {str(getattr(kind, "value", kind)): str(mode.value) for kind, mode in config.normalization_mapping.items()}
    missing = [
        name
        for name, feature in names.items()
        if name not in statistics and modes.get(feature.type.value, "IDENTITY") != "IDENTITY"
    ]
    if missing:
        raise SetupRefusedError(
            f"{path} has no policy_preprocessor.json, and its weights no statistics of {', '.join(missing)} to make "
            "one of: save the processors with the policy, by make_pre_post_processors(config, dataset_stats=...) and "
            "save_pretrained()"
        )
    logger.warning(
        "%s has no processors, as checkpoints had none before LeRobot 0.4: made of the statistics in its weights", path
    )
    processors: tuple[Any, Any] = make_pre_post_processors(config, dataset_stats=statistics)
    return processors
