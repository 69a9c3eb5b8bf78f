"""A session that is alone, and then is not: no answer is lost while others come and go, silent or not."""

from __future__ import annotations

import threading

from shm_actor import expected_actions, make_observation
from shm_processes import actor
from shm_session import connected, exchange

from async_delta_inference.transport import Server
from async_delta_inference.transport.shm import ShmTransport


def test_nothing_is_lost_while_others_come_and_go(server: Server) -> None:
    done, failures, exchanged = threading.Event(), [], [0]

    def chatter() -> None:
        with connected(inference_timeout_s=20.0) as transport:
            while not done.is_set():
                observation = make_observation(exchanged[0])
                transport.send_observation(observation)
                chunk = transport.receive_actions(20.0)
                if chunk is None or chunk.actions.tobytes() != expected_actions(observation).tobytes():
                    failures.append(chunk)
                    return
                exchanged[0] += 1

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        for _ in range(60):
            with connected() as visitor:
                exchange(visitor, 1)
    finally:
        done.set()
        thread.join(60)
    assert not thread.is_alive()
    assert failures == []
    assert exchanged[0] > 60


def test_silent_session_is_heard_when_it_speaks_again(server: Server) -> None:
    """Alone, beside another, and alone again: its client rings or not, and is answered each time."""
    with connected() as first:
        exchange(first, 1)
        with connected() as second:
            for timestep in range(2, 6):
                exchange(first, timestep)
                exchange(second, timestep)
        for timestep in range(6, 9):
            exchange(first, timestep)
        with connected() as third:
            exchange(first, 9)
            exchange(third, 1)


def test_session_is_let_in_beside_one_that_says_nothing(server: Server) -> None:
    with connected(), connected() as second:
        exchange(second, 1)


def test_sessions_of_killed_clients_leave_the_last_one_alone(server: Server) -> None:
    with connected() as survivor:
        exchange(survivor, 1)
        clients = []
        for _ in range(2):
            with actor("chatter", "here") as client:
                client.wait_for("at 100")
                exchange(survivor, len(clients) + 2)
                client.kill()
                clients.append(client)
        for timestep in range(10, 20):
            exchange(survivor, timestep)


def advice_of(transport: ShmTransport) -> int:
    return int(transport._advice[0])


def test_client_that_is_alone_need_not_ring(server: Server) -> None:
    with connected() as first:
        exchange(first, 1)
        assert advice_of(first) == 0
        with connected() as second:
            exchange(second, 1)
            assert (advice_of(first), advice_of(second)) == (1, 1)
