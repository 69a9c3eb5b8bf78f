"""The contract over shared memory."""

from __future__ import annotations

import pytest

from async_delta_inference.transport.testing import TransportContract


@pytest.mark.usefixtures("shm_folder")
class TestShmContract(TransportContract):
    scheme = "shm"
    carries_history = True
    carries_prefix = True
    carries_delay = True
    carries_computation = True
    absent_uri = "shm://nobody-is-here"
