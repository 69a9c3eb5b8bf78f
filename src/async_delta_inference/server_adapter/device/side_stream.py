"""`SideStream`: work for the next batch beside the forward pass of this one."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch

__all__ = ["SideStream"]

_cuda: Any = torch.cuda


class SideStream:
    """A second stream of a GPU; on any other device nothing runs beside anything, and all of this does nothing.

    Use it as a context manager around what is to run beside.

    Args:
        device: The policy's.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _cuda.Stream(device) if device.type == "cuda" else None
        self._within: Any = None

    def __enter__(self) -> Self:
        if self._stream is not None:
            self._within = _cuda.stream(self._stream)
            self._within.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._within is not None:
            self._within.__exit__(exc_type, exc, tb)
            self._within = None

    def join(self, made: Iterable[torch.Tensor]) -> None:
        """Have the current stream begin what follows only when all that ran beside it has ended.

        Args:
            made: Tensors that were made there: their memory is not used again before the current stream is done with
                them.
        """
        if self._stream is None:
            return
        current = _cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in made:
            if tensor.is_cuda:
                tensor.record_stream(current)
