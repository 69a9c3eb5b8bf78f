"""What a run of ``benchmarks/gpu.py`` measures, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.payloads import PAYLOADS, Payload, parse_payload

__all__ = ["PARTS", "Settings"]

PARTS = {"transport": 1.0, "around_forward": 3.0, "batches": 2.5, "sessions": 4.5, "trace": 1.0}
"""In order, with their shares of the time."""

_TINY = parse_payload("2x64x64")


@dataclass(frozen=True)
class Settings:
    """A run.

    Args:
        device: torch's name of it.
        small: Whether policies are tiny, frames small and repetitions few: for trying out.
        in_this_process: Whether the servers around the forward pass are threads of this process, and LeRobot's own is
            left out of the transports: for a test.
        only: Parts of `PARTS`.
        time_limit_s: For all parts together, loading included.
        policies: Types, the most important first.
        sessions: Numbers of simulators, growing.
        batch_sizes: Of forward passes, growing.
        think_ms: How long a simulator simulates between a chunk and its next observation.
        linger_ms: How long the server waits for more sessions once one asks.
        measure_s: For every number of sessions.
    """

    device: str
    small: bool
    in_this_process: bool
    only: Sequence[str]
    time_limit_s: float
    policies: Sequence[str]
    sessions: Sequence[int]
    batch_sizes: Sequence[int]
    think_ms: float
    linger_ms: float
    measure_s: float

    @property
    def payload(self) -> Payload:
        """LIBERO's."""
        return _TINY if self.small else PAYLOADS["libero"]

    @property
    def exchanges(self) -> int:
        """Of the transport alone."""
        return 40 if self.small else 1000

    @property
    def chunks(self) -> int:
        """Of a session around the forward pass."""
        return 8 if self.small else 150

    @property
    def rounds(self) -> int:
        """Sessions of each stack."""
        return 2 if self.small else 4

    @property
    def repeats(self) -> int:
        """Forward passes of each batch size."""
        return 3 if self.small else 50

    @property
    def warmup_s(self) -> float:
        """Before a number of sessions is measured."""
        return 0.1 if self.small else 3.0

    @property
    def profile_s(self) -> float:
        """How long the device is looked at."""
        return 0.1 if self.small else 1.0
