"""`PinnedMemory`: memory that other processes see, too, registered with the CUDA driver.

A copy out of it to the device is asynchronous and takes one pass; out of other memory the driver copies it twice, and
the caller waits. ``cudaHostRegister`` is called through torch's own binding of it.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext, suppress
from typing import Any, Self

import numpy as np
import torch

__all__ = ["PinnedMemory"]

_cuda: Any = torch.cuda
logger = logging.getLogger(__name__)


class PinnedMemory:
    """Registered until `unpin`; made by `pin`.

    Args:
        memory: The mapping; it stays mapped for as long as this lives.
        device: Copies go to it.
        runtime: CUDA's, as torch binds it.
    """

    def __init__(self, memory: memoryview, device: torch.device, runtime: Any) -> None:
        self._bytes = np.frombuffer(memory, np.uint8)
        self._device = device
        self._runtime = runtime

    @classmethod
    def pin(cls, memory: memoryview, device: torch.device, runtime: Any = None) -> Self | None:
        """Register memory with the driver.

        Args:
            memory: All of a mapping.
            device: Copies go to it.
            runtime: CUDA's; torch's binding where it is None.

        Returns:
            None where the driver refuses, which is logged in one line: copies work as well without, and take longer.
        """
        try:
            pinned = cls(memory, device, _cuda.cudart() if runtime is None else runtime)
            with _cuda.device(device) if device.type == "cuda" else nullcontext():
                code = _code(pinned._runtime.cudaHostRegister(pinned._bytes.ctypes.data, pinned._bytes.nbytes, 0))
            reason = f"CUDA error {code}"
        except Exception as exc:  # noqa: BLE001 - whatever is in the way, frames still travel
            code, reason = -1, f"{type(exc).__name__}: {exc}"
        if code:
            logger.warning("frames are copied to %s without pinned memory, which cannot be had: %s", device, reason)
            _forget_error(device)
            return None
        return pinned

    def unpin(self) -> None:
        """Take the registration back; no copy may be under way. Idempotent."""
        registered, self._bytes = self._bytes, np.empty(0, np.uint8)
        if registered.nbytes:
            code = _code(self._runtime.cudaHostUnregister(registered.ctypes.data))
            if code:
                logger.warning("pinned memory could not be given back: CUDA error %s", code)
                _forget_error(self._device)


def _code(result: Any) -> int:
    return int(getattr(result, "value", result))


def _forget_error(device: torch.device) -> None:
    """CUDA keeps the last error, and torch would raise it after the next kernel, whoever's that is."""
    with suppress(Exception):
        torch.zeros(1, device=device)
