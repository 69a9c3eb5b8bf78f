"""What is sent is answered: order, newest wins, waiting, and what may not be sent."""

from __future__ import annotations

import numpy as np
import pytest

from async_delta_inference.errors import InvalidMessageError
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.messages import MAX_DELAY_STEPS, MAX_TASK_BYTES, Observation
from async_delta_inference.transport.testing.base import WAIT_S, ContractBase, eventually
from async_delta_inference.transport.testing.messages import contract_observation, expect_answer
from async_delta_inference.transport.testing.peer import ServedPeer

__all__ = ["ExchangeCases"]


class ExchangeCases(ContractBase):
    """One session, and nothing goes wrong but what the caller does."""

    def test_answer_belongs_to_observation(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(7))
        expect_answer(transport.receive_actions(WAIT_S), 7)

    def test_chunks_come_in_order_and_none_is_lost(self, transport: Transport) -> None:
        for timestep in range(0, 100, 5):
            transport.send_observation(contract_observation(timestep))
            expect_answer(transport.receive_actions(WAIT_S), timestep)

    def test_chunks_wait_for_a_late_reader(self, transport: Transport, peer: ServedPeer) -> None:
        for timestep in range(3):
            transport.send_observation(contract_observation(timestep))
            eventually(lambda timestep=timestep: peer.seen() == list(range(timestep + 1)))  # type: ignore[misc]
        for timestep in range(3):
            expect_answer(transport.receive_actions(WAIT_S), timestep)

    def test_newest_observation_wins_while_the_server_is_busy(self, transport: Transport, peer: ServedPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        for timestep in (1, 2, 3):
            transport.send_observation(contract_observation(timestep))
        eventually(lambda: peer.waiting() == [3])
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        expect_answer(transport.receive_actions(WAIT_S), 3)
        assert peer.seen() == [0, 3]

    def test_sending_never_waits_for_a_busy_server(self, transport: Transport, peer: ServedPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        for timestep in range(1, 200):
            transport.send_observation(contract_observation(timestep))
        eventually(lambda: peer.waiting() == [199])
        peer.release()
        last = -1
        while last != 199:
            chunk = transport.receive_actions(WAIT_S)
            assert chunk is not None
            assert chunk.timestep > last
            last = chunk.timestep
            expect_answer(chunk, last)

    def test_chunk_stays_valid(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(0))
        first = transport.receive_actions(WAIT_S)
        for timestep in range(1, 20):
            transport.send_observation(contract_observation(timestep))
            expect_answer(transport.receive_actions(WAIT_S), timestep)
        expect_answer(first, 0)

    def test_buffer_of_the_caller_is_not_retained(self, transport: Transport, peer: ServedPeer) -> None:
        peer.hold()
        transport.send_observation(contract_observation(0))
        eventually(lambda: peer.seen() == [0])
        observation = contract_observation(4)
        transport.send_observation(observation)
        observation.state[:] = -1
        for image in observation.images.values():
            image[:] = 255
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        expect_answer(transport.receive_actions(WAIT_S), 4)

    def test_arrays_need_not_be_contiguous(self, transport: Transport) -> None:
        observation = contract_observation(9)
        for name, image in observation.images.items():
            observation.images[name] = np.repeat(image, 2, axis=1)[::-1, ::2]
        observation.state = np.repeat(observation.state, 2)[::2]
        transport.send_observation(observation)
        expect_answer(transport.receive_actions(WAIT_S), 9)

    # Waiting.

    @pytest.mark.parametrize("timeout_s", [0.0, 0.05, -1.0])
    def test_timeout_gives_none_and_loses_nothing(
        self, transport: Transport, peer: ServedPeer, timeout_s: float
    ) -> None:
        assert transport.receive_actions(timeout_s) is None
        peer.hold()
        transport.send_observation(contract_observation(0))
        assert transport.receive_actions(timeout_s) is None
        peer.release()
        expect_answer(transport.receive_actions(WAIT_S), 0)
        assert transport.receive_actions(timeout_s) is None

    def test_polling_finds_the_chunk(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(2))
        found = []

        def poll() -> bool:
            chunk = transport.receive_actions(0.0)
            if chunk is not None:
                found.append(chunk)
            return bool(found)

        eventually(poll)
        expect_answer(found[0], 2)

    def test_inference_delay_travels(self, transport: Transport, peer: ServedPeer) -> None:
        delays = [None, 0, 3, MAX_DELAY_STEPS, None]
        for timestep, delay in enumerate(delays):
            observation = contract_observation(timestep)
            observation.inference_delay = delay
            transport.send_observation(observation)
            expect_answer(transport.receive_actions(WAIT_S), timestep)
        (session,) = peer.sessions()
        assert session.delays == (delays if self.carries_delay else [None] * len(delays))

    # What the caller may not send.

    @pytest.mark.parametrize(
        "fault",
        [
            *("shape", "dtype", "state shape", "state dtype", "missing", "unknown", "list"),
            *("timestep", "episode", "inference_delay", "timestamp_s", "task"),
        ],
    )
    def test_observation_that_does_not_fit_is_refused(self, transport: Transport, fault: str) -> None:
        observation = contract_observation(1)
        _spoil(observation, fault)
        with pytest.raises(InvalidMessageError):
            transport.send_observation(observation)
        transport.send_observation(contract_observation(2))
        expect_answer(transport.receive_actions(WAIT_S), 2)

    def test_timesteps_must_not_decrease(self, transport: Transport) -> None:
        transport.send_observation(contract_observation(5))
        with pytest.raises(InvalidMessageError):
            transport.send_observation(contract_observation(4))

    def test_long_task_is_refused(self, transport: Transport) -> None:
        observation = contract_observation(0)
        observation.task = "x" * (MAX_TASK_BYTES + 1)
        with pytest.raises(InvalidMessageError):
            transport.send_observation(observation)


def _spoil(observation: Observation, fault: str) -> None:
    front = observation.images["front"]
    if fault == "shape":
        observation.images["front"] = front[:-1]
    elif fault == "dtype":
        observation.images["front"] = front.astype(np.float32)
    elif fault == "state shape":
        observation.state = observation.state[:-1]
    elif fault == "state dtype":
        observation.state = observation.state.astype(np.float64)
    elif fault == "missing":
        del observation.images["front"]
    elif fault == "unknown":
        observation.images["extra"] = front
    elif fault in ("timestep", "episode", "inference_delay"):
        setattr(observation, fault, 1.5)
    elif fault == "timestamp_s":
        observation.timestamp_s = float("inf")
    elif fault == "task":
        observation.task = "\ud800"  # a surrogate, which UTF-8 cannot hold
    else:
        observation.images["front"] = front.tolist()
