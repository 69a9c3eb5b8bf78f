"""`PrefixSlot`: where the robot's own actions lie in an observation slot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.action_prefix import ActionPrefix, PrefixLimits
from async_delta_inference.transport.shm.shared.layout import PREFIX_COUNTS

__all__ = ["PrefixSlot"]


class PrefixSlot:
    """Two counts, and then the rows: the executed ones, those to come.

    Args:
        memory: Of the segment, from the place on.
        limits: Most rows.
        action_dim: Length of an action.
    """

    def __init__(self, memory: memoryview, limits: PrefixLimits, action_dim: int) -> None:
        self._counts = memory[: PREFIX_COUNTS.size]
        self._limits = limits
        self._rows: NDArray[np.float32] = np.ndarray((limits.rows, action_dim), np.float32, memory, PREFIX_COUNTS.size)

    def write(self, prefix: ActionPrefix) -> None:
        """Put one that was checked into it."""
        executed, committed = len(prefix.executed), len(prefix.committed)
        self._rows[:executed] = prefix.executed
        self._rows[executed : executed + committed] = prefix.committed
        PREFIX_COUNTS.pack_into(self._counts, 0, executed, committed)

    def read(self) -> ActionPrefix:
        """What is in it, as views that must not be written to.

        Raises:
            ProtocolError: More rows than were agreed.
        """
        executed, committed = PREFIX_COUNTS.unpack_from(self._counts)
        if executed > self._limits.executed or committed > self._limits.committed:
            raise ProtocolError(
                f"the client says that {executed} actions were executed and {committed} are to come; agreed were at "
                f"most {self._limits.executed} and {self._limits.committed}"
            )
        prefix = ActionPrefix.of_rows(self._rows[: executed + committed], executed)
        prefix.make_read_only()
        return prefix
