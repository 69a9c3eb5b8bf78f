"""Where actions lie when the environment is given them: in memory as numpy arrays, or on a torch device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ConfigError

__all__ = ["check_device", "device_converter"]


def check_device(client_device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: Torch has no such device here; its reason.
    """
    if client_device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=client_device)
    # Which error it raises depends on the kind of device: RuntimeError, AssertionError, NotImplementedError.
    except Exception as exc:
        raise ConfigError(f"--client_device={client_device} cannot be used: {exc}") from exc


def device_converter(client_device: str) -> Callable[[NDArray[np.float32]], Any]:
    """From an action to what the environment is given: itself, or a torch tensor on another device."""
    if client_device == "cpu":
        return lambda action: action
    import torch

    return lambda action: torch.from_numpy(action.copy()).to(client_device)
