"""`ChunkFetch`: chunks come back from the policy's device through one pinned buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["ChunkFetch", "Fetched"]

_cuda: Any = torch.cuda


class ChunkFetch:
    """Begins to copy chunks to the host without waiting for the device; whoever needs them waits for that copy alone.

    There is one buffer, so that a fetch that nobody has waited for is waited for before the next one begins.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._event: Any = None
        self._last: Fetched | None = None

    def begin(self, chunks: torch.Tensor) -> Fetched:
        """Of any shape and floating type, on any device; what is fetched is float32 of that shape."""
        last, self._last = self._last, None
        if last is not None:
            last()
        whole = chunks.detach().to(torch.float32)
        if whole.device.type != "cuda":
            return Fetched(whole.cpu())
        if self._buffer is None or self._buffer.numel() < whole.numel():
            # Real-time chunking fetches outside of inference mode, where a tensor made in it cannot be written.
            with torch.inference_mode(False):
                self._buffer = torch.empty(whole.numel(), dtype=torch.float32, pin_memory=True)
            self._event = _cuda.Event()
        assert self._event is not None
        place = self._buffer[: whole.numel()].view(whole.shape)
        place.copy_(whole, non_blocking=True)
        self._event.record(_cuda.current_stream(whole.device))
        self._last = Fetched(place, self._event)
        return self._last


class Fetched:
    """Chunks that are on their way to the host.

    Args:
        place: Where they arrive: on the CPU.
        event: Fires when they have; None: they have.
    """

    def __init__(self, place: torch.Tensor, event: Any = None) -> None:
        self._place: torch.Tensor | None = place
        self._event = event
        self._values: NDArray[np.float32] | None = None

    def __call__(self) -> NDArray[np.float32]:
        """Wait for them; in memory of their own, and the same again when called again."""
        if self._values is None:
            assert self._place is not None
            if self._event is not None:
                self._event.synchronize()
            self._values, self._place = np.array(self._place.numpy()), None
        return self._values

    def is_done(self) -> bool:
        """Whether nobody would have to wait."""
        return self._values is not None or self._event is None or bool(self._event.query())
