"""`RtcOptions`: real-time chunking, with LeRobot's names and defaults."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

from async_delta_inference.errors import InvalidMessageError

__all__ = ["RtcOptions"]

_SCHEDULES = ("ZEROS", "ONES", "LINEAR", "EXP")
_SHORT = ("pad", "shorten")
_LONGEST_HORIZON = 2**16


@dataclass(frozen=True)
class RtcOptions:
    """How a chunk is made to continue the one before it.

    Args:
        enabled: Whether it is; off by default.
        execution_horizon: Over how many actions of the last chunk the new one is guided; at least 1.
        max_guidance_weight: Bound of the guidance's weight, above 0.
        prefix_attention_schedule: How the guidance fades over the horizon: ZEROS, ONES, LINEAR or EXP.
        short_leftover: Where fewer actions of the last chunk are left than the horizon: ``pad`` guides to zeros behind
            them, as lerobot-rollout does, ``shorten`` shortens the horizon, as LeRobot's RTC itself does.

    Raises:
        InvalidMessageError: One is not as described.
    """

    enabled: bool = False
    """Have each chunk continue the one before it, for policies that can (smolvla, pi0, pi05, ...)."""
    execution_horizon: int = 10
    """Over how many actions of the last chunk the new one is guided."""
    max_guidance_weight: float = 10.0
    """Bound of the weight of that guidance."""
    prefix_attention_schedule: str = "LINEAR"
    """How the guidance fades over the horizon: ZEROS, ONES, LINEAR or EXP."""
    short_leftover: str = "pad"
    """Where the last chunk has fewer actions left than the horizon: pad (zeros behind them, as lerobot-rollout does) or
    shorten (the horizon)."""

    def __post_init__(self) -> None:
        if type(self.enabled) is not bool:
            raise InvalidMessageError(f"rtc.enabled must be true or false, got {str(self.enabled)[:40]}")
        if type(self.execution_horizon) is not int or not 1 <= self.execution_horizon <= _LONGEST_HORIZON:
            raise InvalidMessageError(
                f"rtc.execution_horizon must be a number of steps from 1 to {_LONGEST_HORIZON}, "
                f"got {str(self.execution_horizon)[:40]}"
            )
        weight = self.max_guidance_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise InvalidMessageError(f"rtc.max_guidance_weight must be positive, got {str(weight)[:40]}")
        for name, value, known in (
            ("prefix_attention_schedule", self.prefix_attention_schedule, _SCHEDULES),
            ("short_leftover", self.short_leftover, _SHORT),
        ):
            if value not in known:
                raise InvalidMessageError(f"rtc.{name} must be one of {', '.join(known)}, got {str(value)[:40]!r}")

    def to_message(self) -> list[Any]:
        """Plain values, which `from_message` reads."""
        return list(astuple(self))

    @classmethod
    def from_message(cls, message: object) -> RtcOptions:
        """Read and check what a peer sent.

        Raises:
            InvalidMessageError: It is not what `to_message` gives.
        """
        if isinstance(message, (list, tuple)) and len(message) == 5:
            return cls(*message)
        raise InvalidMessageError(f"not real-time chunking's options: {str(message)[:200]}")
