"""Other threads, forks, signals, and processes that are stopped and go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from shm_actor import expected_actions, make_observation
from shm_processes import actor, eventually
from shm_session import connected, exchange

from async_delta_inference.errors import (
    TransportClosed,
)
from async_delta_inference.transport import Server
from async_delta_inference.transport.shm import ShmTransport


def test_other_threads_than_the_creators(transport: ShmTransport) -> None:
    count, failures = 200, []

    def send() -> None:
        for timestep in range(count):
            transport.send_observation(make_observation(timestep))
            time.sleep(0.0005)

    def receive() -> None:
        last = -1
        while last != count - 1:
            chunk = transport.receive_actions(30.0)
            if chunk is None or chunk.timestep <= last:
                failures.append(chunk)
                return
            if chunk.actions.tobytes() != expected_actions(make_observation(chunk.timestep)).tobytes():
                failures.append(chunk)
            last = chunk.timestep

    threads = [threading.Thread(target=target) for target in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_of_a_server_stops_nothing(server: Server) -> None:
    """A child that leaves through the parent's clean-up must not take the parent's socket with it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            server.stop()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with connected() as transport:
        exchange(transport, 1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_gets_a_closed_copy_and_the_parent_goes_on(transport: ShmTransport) -> None:
    loan = transport.loan_observation()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            transport.send_observation(make_observation(1))
        except TransportClosed:
            code = 2 if loan.state.flags.writeable else 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loan.state[...] = 1
    transport.return_loan(loan)
    exchange(transport, 1)


def test_signals_during_a_wait(transport: ShmTransport) -> None:
    count = [0]

    def handle(*_: object) -> None:
        count[0] += 1

    old = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        exchange(transport, 1, task="sleep 0.3")
        start_s = time.monotonic()
        assert transport.receive_actions(0.3) is None
        assert 0.25 < time.monotonic() - start_s < 2.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert count[0] > 10


def test_interrupt_ends_the_wait_and_not_the_session(transport: ShmTransport) -> None:
    class Interrupt(KeyboardInterrupt):
        """posix_ipc lets these through; other exceptions of a handler are lost in its wait, see docs/design/shm.md."""

    def handle(*_: object) -> None:
        raise Interrupt

    old = signal.signal(signal.SIGALRM, handle)
    try:
        transport.send_observation(make_observation(1, task="sleep 0.4"))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupt):
            transport.receive_actions(30.0)
    finally:
        signal.signal(signal.SIGALRM, old)
    chunk = transport.receive_actions(30.0)
    assert chunk is not None
    exchange(transport, 2)


def test_handler_that_closes_ends_the_wait(transport: ShmTransport) -> None:
    old = signal.signal(signal.SIGALRM, lambda *_: transport.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TransportClosed):
            transport.receive_actions(30.0)
    finally:
        signal.signal(signal.SIGALRM, old)


def test_server_that_is_stopped_and_continued(shm_folder: Path) -> None:
    with actor("serve", "here") as server:
        server.wait_for("ready")
        with connected() as transport:
            exchange(transport, 1)
            server.process.send_signal(signal.SIGSTOP)
            eventually(lambda: psutil.Process(server.process.pid).status() == psutil.STATUS_STOPPED, "it has stopped")
            start_s = time.monotonic()
            for timestep in range(2, 50):
                transport.send_observation(make_observation(timestep))
            assert time.monotonic() - start_s < 5.0
            assert transport.receive_actions(0.3) is None
            server.process.send_signal(signal.SIGCONT)
            last = 1
            while last != 49:
                chunk = transport.receive_actions(30.0)
                assert chunk is not None
                assert chunk.timestep > last
                last = chunk.timestep
            exchange(transport, 50)
        server.end()


def test_client_that_is_stopped_disturbs_no_other_and_can_go_on(server: Server) -> None:
    with actor("chatter", "here") as client:
        client.wait_for("at 100")
        for _ in range(3):
            client.process.send_signal(signal.SIGSTOP)
            with connected() as other:
                exchange(other, 1)
            client.process.send_signal(signal.SIGCONT)
        assert client.end() == 0
    with connected() as transport:
        exchange(transport, 1)
