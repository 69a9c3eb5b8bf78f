"""The contract within one process."""

from __future__ import annotations

from async_delta_inference.transport.testing import TransportContract


class TestInprocContract(TransportContract):
    scheme = "inproc"
    carries_history = True
    carries_prefix = True
    carries_delay = True
    carries_computation = True
    absent_uri = "inproc://nobody-is-here"
