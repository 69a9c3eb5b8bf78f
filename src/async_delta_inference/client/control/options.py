"""`ControlOptions`: what the control loop is told once for a whole run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ControlOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlOptions:
    """Named as the flags they come from, and checked there.

    Args:
        chunk_size_threshold: Ask for a chunk when queued actions / chunk size <= this.
        must_go: ``always`` or ``queue_empty``: when the server has to answer.
        one_request_in_flight: False: send an observation every step while the queue is short.
        on_starvation: ``wait``, ``hold`` or ``skip``.
        render: ``on_demand`` or ``always``.
        client_device: Torch device of the actions given to the environment.
    """

    chunk_size_threshold: float
    must_go: str
    one_request_in_flight: bool
    on_starvation: str
    render: str
    client_device: str
