"""`FrameCopies`: copies out of slots that may still be under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["FrameCopies"]

_cuda: Any = torch.cuda


class FrameCopies:
    """Gives slots back once the copies out of them have ended. Of one session; waits only where it is told to.

    Args:
        device: The policy's GPU.
        record: Gives an event of CUDA's that fires when all that its current stream has been given so far has ended.
    """

    def __init__(self, device: torch.device, record: Callable[[torch.device], Any] | None = None) -> None:
        self._device = device
        self._record = record or _recorded
        self._under_way: deque[tuple[Any, Callable[[], None]]] = deque()

    def began(self, release: Callable[[], None]) -> None:
        """The device's current stream has been given copies out of a slot.

        Args:
            release: Gives it back.
        """
        self._under_way.append((self._record(self._device), release))

    def settle(self) -> bool:
        """Give back the slots whose copies have ended, and say whether all have; waits for nothing."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()[1]()
        return not self._under_way

    def finish(self) -> None:
        """Wait for all copies, and give all slots back."""
        while self._under_way:
            event, release = self._under_way.popleft()
            event.synchronize()
            release()


def _recorded(device: torch.device) -> Any:
    event = _cuda.Event()
    event.record(_cuda.current_stream(device))
    return event
