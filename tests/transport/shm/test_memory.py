"""The slot is the memory: loans, aliasing, and slots that come back in any order."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
from shm_actor import Stateless, expected_actions, make_observation
from shm_session import ProbedPolicy, connected, exchange

from async_delta_inference.errors import (
    LoanError,
)
from async_delta_inference.transport import Observation, Server
from async_delta_inference.transport.shm import ShmTransport


def test_server_reads_the_very_memory_that_the_client_wrote(transport: ShmTransport, policy: ProbedPolicy) -> None:
    """A write into the client's mapping while the server holds the slot shows in the server's array."""

    def probe(observation: Observation) -> tuple[int, ...]:
        assert not observation.state.flags.writeable
        assert not any(image.flags.writeable for image in observation.images.values())
        [slot] = [
            slot for slot, (state, _) in enumerate(transport._slots) if state.tobytes() == observation.state.tobytes()
        ]
        state, images = transport._slots[slot]
        seen = []
        for value in (7, 8):
            state[0] = value
            for _, image in images:
                image[-1, -1, -1] = value
            seen.append((int(observation.state[0]), *(int(i[-1, -1, -1]) for i in observation.images.values())))
        return (*seen[0], *seen[1])

    policy.probe = probe
    transport.send_observation(make_observation(1))
    assert transport.receive_actions(30.0) is not None
    assert policy.probed == [(7, 7, 7, 8, 8, 8)]


def test_loan_is_the_slot(transport: ShmTransport) -> None:
    loan = transport.loan_observation()
    state, images = transport._slots[transport._loan_slot]
    assert np.shares_memory(loan.state, state)
    assert loan.state.ctypes.data == state.ctypes.data
    for name, image in images:
        assert loan.images[name].ctypes.data == image.ctypes.data
        assert loan.images[name].flags.c_contiguous
    observation = make_observation(4)
    loan.state[...] = observation.state
    for name, image in observation.images.items():
        loan.images[name][...] = image
    loan.timestep = 4
    transport.send_observation(loan)
    chunk = transport.receive_actions(30.0)
    assert chunk is not None
    assert chunk.actions.tobytes() == expected_actions(observation).tobytes()


def test_loan_whose_arrays_were_replaced_is_refused(transport: ShmTransport) -> None:
    loan = transport.loan_observation()
    loan.images["front"] = loan.images["front"].copy()
    with pytest.raises(LoanError, match="in place"):
        transport.send_observation(loan)
    transport.return_loan(loan)
    fresh = transport.loan_observation()
    assert np.shares_memory(fresh.images["front"], transport._slots[transport._loan_slot][1][0][1])


def test_loan_outlives_the_transport(server: Server) -> None:
    transport = connected()
    loan = transport.loan_observation()
    loan.state[0] = 5
    transport.close()
    del transport
    gc.collect()
    assert loan.state[0] == 5
    with pytest.raises(ValueError, match="read-only"):
        loan.state[0] = 6


def test_slots_come_back_in_any_order_of_use(transport: ShmTransport) -> None:
    """Loans, copies, returns and replaced observations in turn: no slot is lost."""
    for timestep in range(0, 120, 3):
        loan = transport.loan_observation()
        if timestep % 2:
            transport.return_loan(loan)
        transport.send_observation(make_observation(timestep))
        transport.send_observation(make_observation(timestep + 1))
        if not timestep % 2:
            loan.state[...] = 0
            for image in loan.images.values():
                image[...] = 0
            loan.timestep = timestep + 1
            transport.send_observation(loan)
        exchange_rest(transport, timestep + 1)


def exchange_rest(transport: ShmTransport, last: int) -> None:
    seen = -1
    while seen != last:
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        seen = chunk.timestep
    while transport.receive_actions(0.01) is not None:
        pass


class ShownSession(Stateless):
    """Writes down which memory it is shown."""

    def __init__(self, shown: list[memoryview]) -> None:
        self._shown = shown

    def share(self, memory: memoryview) -> None:
        self._shown.append(memory)


def test_a_session_is_shown_the_memory_that_its_observations_lie_in(
    transport: ShmTransport, policy: ProbedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be registered with a device: all of it, in whole pages."""
    shown: list[memoryview] = []
    monkeypatch.setattr(policy, "open", lambda spec: ShownSession(shown))
    policy.probe = lambda observation: all(
        np.shares_memory(np.frombuffer(shown[0], np.uint8), array)
        for array in (observation.state, *observation.images.values())
    )
    second = connected()
    exchange(second, 3)
    second.close()
    assert policy.probed[-1]
    assert len(shown) == 1
    assert shown[0].nbytes % mmap.PAGESIZE == np.frombuffer(shown[0], np.uint8).ctypes.data % mmap.PAGESIZE == 0
