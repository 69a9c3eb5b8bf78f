"""Loans and aliasing, threads, forks, signals, stops, the end of the interpreter; nothing kept that was given back."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from shm_actor import FEATURES, ChecksumPolicy, expected_actions, make_observation, policy_spec, shm_server
from shm_processes import ACTOR, Actor, actor, eventually, left_behind

from async_delta_inference.errors import (
    InvalidMessageError,
    LoanError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportTimeout,
)
from async_delta_inference.transport import Observation, PolicySession, Server, SessionSpec, TransportOptions
from async_delta_inference.transport.shm import ShmTransport
from async_delta_inference.transport.shm.client.attachment import Attachment
from async_delta_inference.transport.shm.server import session


class ProbedPolicy(ChecksumPolicy):
    """Lets a test look at the observation while the server has it."""

    def __init__(self) -> None:
        self.probe: Callable[[Observation], object] = lambda observation: None
        self.probed: list[object] = []

    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:
        self.probed.append(self.probe(observation))
        return super().answer(observation, release)


@pytest.fixture
def policy() -> ProbedPolicy:
    return ProbedPolicy()


@pytest.fixture
def server(shm_folder: Path, policy: ProbedPolicy) -> Iterator[Server]:
    server = shm_server("here", policy, action_slots=4)
    server.start()
    yield server
    server.stop()
    assert left_behind(shm_folder) == []


@pytest.fixture
def transport(server: Server) -> Iterator[ShmTransport]:
    with connected() as transport:
        yield transport


def connected(spec: SessionSpec | None = None, **options: float) -> ShmTransport:
    transport = ShmTransport("here", TransportOptions(connect_timeout_s=10.0, **options))
    transport.connect(spec or policy_spec())
    return transport


def exchange(transport: ShmTransport, timestep: int, task: str = "") -> None:
    observation = make_observation(timestep, task=task)
    transport.send_observation(observation)
    chunk = transport.receive_actions(30.0)
    assert chunk is not None
    assert chunk.actions.tobytes() == expected_actions(observation).tobytes()


# Aliasing.


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


# Errors that travel, and space that ends.


def test_error_of_the_policy_travels_and_the_session_goes_on(transport: ShmTransport) -> None:
    transport.send_observation(make_observation(1, task="raise " + "ü" * 2000))
    with pytest.raises(PolicyError, match="RuntimeError: üü") as info:
        transport.receive_actions(30.0)
    assert info.value.timestep == 1
    exchange(transport, 2)


def test_filtered_observation_is_not_waited_for(transport: ShmTransport) -> None:
    transport.send_observation(make_observation(1, task="filter"))
    assert transport.receive_actions(0.5) is None
    assert transport._deadline.answered_timestep == 1
    exchange(transport, 2)


def test_observation_that_is_not_answered_in_time_is_an_error(server: Server) -> None:
    with connected(inference_timeout_s=0.2) as transport:
        transport.send_observation(make_observation(1, task="sleep 0.8"))
        with pytest.raises(TransportTimeout, match="timestep 1"):
            transport.receive_actions(30.0)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.timestep == 1
        exchange(transport, 2)


def test_client_that_stops_reading_is_told_so(transport: ShmTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four slots: four answers are kept, the fifth ends the session, and none of the four is lost."""
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 0.2)
    sent = []
    for timestep in range(5):
        sent.append(make_observation(timestep))
        transport.send_observation(sent[-1])
        eventually(lambda n=timestep: transport._actions_ready.value >= min(n + 1, 4), "answered")  # type: ignore[misc]
    eventually(lambda: transport._attachment.end is not None, "the session ended")
    for observation in sent[:4]:
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tobytes() == expected_actions(observation).tobytes()
    with pytest.raises(PeerGoneError, match="has not read its actions"):
        transport.receive_actions(30.0)
    with pytest.raises(PeerGoneError, match="has not read its actions"):
        transport.send_observation(make_observation(9))


def test_client_that_reads_slowly_loses_nothing(transport: ShmTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room comes by half rings, here after three chunks: it takes longer than the server waits for a silent client."""
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 2.0)
    sent = []
    for timestep in range(5):
        sent.append(make_observation(timestep))
        transport.send_observation(sent[-1])
        eventually(
            lambda n=timestep: transport._actions_ready.value >= min(n + 1, 4),  # type: ignore[misc]
            "answered, as far as there is room",
        )
    for observation in sent:
        time.sleep(0.8)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tobytes() == expected_actions(observation).tobytes()


@pytest.mark.parametrize("fault", [{"timestep": 1.5}, {"episode": 1.5}, {"timestamp_s": 10**400}, {"task": "\ud800"}])
@pytest.mark.parametrize("loaned", [False, True])
def test_scalar_that_cannot_be_sent_costs_no_slot(transport: ShmTransport, fault: dict[str, Any], loaned: bool) -> None:
    for _ in range(2 * len(transport._slots)):
        observation = transport.loan_observation() if loaned else make_observation(1)
        for name, value in fault.items():
            setattr(observation, name, value)
        with pytest.raises(InvalidMessageError):
            transport.send_observation(observation)
        if loaned:
            transport.return_loan(observation)
    assert sorted(transport._writer._mine) == list(range(len(transport._slots)))
    exchange(transport, 1)


@pytest.mark.parametrize("owner", ["_store", "_ready"])
def test_interrupt_in_the_middle_of_a_send_ends_the_session(transport: ShmTransport, owner: str) -> None:
    """Half of a publication may be done: going on could hand the same slot out twice."""

    class Interrupting:
        value = 1

        def __call__(self, *_: object) -> None:
            raise KeyboardInterrupt

        release = acquire = __call__

    transport.send_observation(make_observation(1, task="sleep 0.3"))
    setattr(transport._writer, owner, Interrupting())
    with pytest.raises(KeyboardInterrupt):
        transport.send_observation(make_observation(2))
    for use in (lambda: transport.send_observation(make_observation(3)), transport.loan_observation):
        with pytest.raises(ProtocolError, match="interrupted"):
            use()
    transport.close()
    with connected() as second:
        exchange(second, 1)


def test_timestamp_that_is_not_finite_is_refused(transport: ShmTransport) -> None:
    observation = make_observation(1)
    observation.timestamp_s = float("nan")
    with pytest.raises(InvalidMessageError, match="timestamp_s"):
        transport.send_observation(observation)
    exchange(transport, 1)


def test_server_that_is_stopped_says_so(shm_folder: Path, policy: ProbedPolicy) -> None:
    server = shm_server("here", policy)
    server.start()
    with connected() as transport:
        exchange(transport, 1)
        server.stop()
        server.stop()
        with pytest.raises(PeerGoneError, match="stopped"):
            transport.receive_actions(30.0)
    assert left_behind(shm_folder) == []


def test_server_that_is_stopped_while_it_loads_says_so(shm_folder: Path, policy: ProbedPolicy) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def load(spec: SessionSpec) -> PolicySession:
        loading.set()
        loaded.wait(60)
        return ChecksumPolicy.open(policy, spec)

    policy.open = load  # type: ignore[method-assign]
    server = shm_server("here", policy)
    server.start()
    stopper = threading.Thread(target=lambda: (loading.wait(60), server.stop()))
    stopper.start()
    with ShmTransport("here") as transport, pytest.raises(PeerGoneError, match="stopped"):
        transport.connect(policy_spec())
    loaded.set()
    stopper.join()
    assert left_behind(shm_folder) == []


def test_policy_that_exits_ends_nothing(server: Server, policy: ProbedPolicy) -> None:
    """A policy's code may call sys.exit: the thread that serves all clients must not end with it."""
    load = policy.open

    def leave(*_: object) -> None:
        sys.exit("enough")

    policy.open = leave  # type: ignore[method-assign]
    with ShmTransport("here") as transport, pytest.raises(SetupRefusedError, match="enough"):
        transport.connect(policy_spec())
    policy.open, policy.probe = load, leave  # type: ignore[method-assign]
    with connected() as transport:
        transport.send_observation(make_observation(1))
        with pytest.raises(PolicyError, match="enough"):
            transport.receive_actions(30.0)
        policy.probe = lambda observation: None
        exchange(transport, 2)


def test_text_that_utf8_cannot_hold(server: Server, policy: ProbedPolicy) -> None:
    """Names of files are bytes: in a policy's path it is the caller's mistake, in a reason it is spelled out."""
    with ShmTransport("here") as transport, pytest.raises(InvalidMessageError, match="UTF-8"):
        transport.connect(SessionSpec("act", "\udcff", 1, FEATURES, 1))

    def refuse(spec: SessionSpec) -> None:
        raise RuntimeError("no file \udcff")

    policy.open = refuse  # type: ignore[method-assign]
    with ShmTransport("here") as transport, pytest.raises(SetupRefusedError, match=r"no file \?"):
        transport.connect(policy_spec())


def test_server_without_threads_refuses_and_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, ShmTransport("here") as transport:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(SetupRefusedError, match="no thread left"):
            transport.connect(policy_spec())
    with connected() as transport:
        exchange(transport, 1)


def test_policy_that_refuses_is_heard(server: Server, policy: ProbedPolicy) -> None:
    def refuse(spec: SessionSpec) -> None:
        raise RuntimeError("no such checkpoint")

    policy.open = refuse  # type: ignore[method-assign]
    with ShmTransport("here") as transport, pytest.raises(SetupRefusedError, match="no such checkpoint"):
        transport.connect(policy_spec())


# Threads, forks, signals, the end.


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


@pytest.mark.parametrize("waiting", [False, True])
def test_interpreter_that_ends_with_an_open_transport(server: Server, waiting: bool) -> None:
    script = """
from shm_actor import *
import threading
transport = open_transport("shm://here")
transport.connect(policy_spec())
transport.send_observation(make_observation(1))
assert transport.receive_actions(30.0) is not None
loan = transport.loan_observation()
""" + ("threading.Thread(target=transport.receive_actions, args=(60.0,), daemon=True).start()\n" if waiting else "")
    environment = {**os.environ, "PYTHONPATH": str(ACTOR.parent)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    with connected() as transport:
        exchange(transport, 1)


def test_transport_that_is_dropped_frees_what_it_held(server: Server) -> None:
    transport = connected()
    exchange(transport, 1)
    del transport
    gc.collect()
    with connected() as transport:
        exchange(transport, 1)


def test_transport_that_is_finalized_by_its_own_thread(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector runs in any thread, the one that watches the server included."""
    watch, errors = Attachment._watch, []

    def watch_and_dispose(attachment: Attachment) -> None:
        watch(attachment)
        try:
            attachment.dispose()
        except RuntimeError as exc:
            errors.append(exc)

    monkeypatch.setattr(Attachment, "_watch", watch_and_dispose)
    with connected() as transport:
        transport._attachment._connection.shut_down()
        transport._attachment._watcher.join()
    assert errors == []


def test_sessions_leave_no_descriptor_mapping_or_thread(server: Server) -> None:
    def held() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("adi-"), threading.active_count()

    def session_of_one() -> None:
        with connected() as transport:
            exchange(transport, 1)

    session_of_one()
    eventually(lambda: not server.listeners[0]._connections, "the server is done with it")
    before = held()
    for _ in range(20):
        session_of_one()
    eventually(lambda: not server.listeners[0]._connections, "the server is done with it")
    gc.collect()
    eventually(lambda: held() <= before, f"{held()} comes down to {before}", 10.0)


def test_server_actor_is_not_kept_by_its_fork(shm_folder: Path) -> None:
    server = Actor("serve", "here")
    server.wait_for("ready")
    with connected() as transport:
        exchange(transport, 1)
    assert server.end() == 0
    assert left_behind(shm_folder) == []


def test_sessions_that_a_stopped_server_ended_are_freed(shm_folder: Path) -> None:
    """What a session raised, and what a transport keeps of it, must not keep the session's memory mapped."""
    kept: list[tuple[ShmTransport, Exception]] = []

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("adi-")

    def session_of_one(stopping: Server) -> None:
        transport = connected()
        exchange(transport, 1)
        stopping.stop()
        for _ in range(2):
            with pytest.raises(PeerGoneError, match="stopped") as info:
                transport.receive_actions(30.0)
        transport.close()
        kept.append((transport, info.value.with_traceback(None)))

    before = held()
    for _ in range(10):
        server = shm_server("here")
        server.start()
        session_of_one(server)
    del server
    gc.collect()
    eventually(lambda: held() <= before, f"{held()} comes down to {before}", 10.0)
