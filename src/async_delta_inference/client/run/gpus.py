"""Which of this host's GPUs each policy server of a run gets, found out without taking hold of one."""

from __future__ import annotations

import os
from typing import Any

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.errors import ConfigError

__all__ = ["servers_variables", "visible_gpus"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def servers_variables(config: SimClientConfig, most: int) -> list[dict[str, str]]:
    """For each server that a run of this host starts, what its environment has besides.

    Where the policy runs on GPUs each of several servers sees one of them, in turn where there are more servers.

    Args:
        config: Says how many; with ``auto`` one for each GPU where the policy runs on one, else one.
        most: There are no more than these.

    Raises:
        ConfigError: Several are to be, on GPUs, and there is no GPU.
    """
    on_gpus = config.num_servers not in (None, "1") and config.policy_device.startswith("cuda")
    gpus = visible_gpus() if on_gpus else []
    if on_gpus and not gpus:
        raise ConfigError(
            f"--policy_device={config.policy_device}: no GPU can be seen here, see nvidia-smi and {_VISIBLE}"
        )
    count = min(config.servers_wanted or len(gpus) or 1, most)
    if count == 1 or not gpus:
        return [{}] * count
    return [{_VISIBLE: gpus[index % len(gpus)]} for index in range(count)]


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that this process may use: its index, or as it is said there."""
    import torch

    cuda: Any = torch.cuda
    count: int = cuda.device_count()
    said = os.environ.get(_VISIBLE)
    names = [str(index) for index in range(count)] if said is None else [name.strip() for name in said.split(",")]
    # From one on that there is not, CUDA sees none.
    return names[:count]
