"""What the base class of transports does for every backend, where the contract's server cannot bring it about.

The backends here have no server: a test puts what they receive into a list.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import pytest

from async_delta_inference.errors import (
    InvalidMessageError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport import ActionChunk, Observation, SessionSpec, Transport, TransportOptions
from async_delta_inference.transport.testing import CONTRACT_POLICY, WAIT_S, contract_observation, eventually

HASTY = TransportOptions(inference_timeout_s=0.1)


class Postbox(Transport):
    """Receives what a test has posted; else waits as long as it is told."""

    def __init__(self, options: TransportOptions = HASTY) -> None:
        super().__init__("postbox", options)
        self.posted: deque[ActionChunk | TransportError] = deque()
        self.closings = 0
        self.expects = True
        self.repeats: ActionChunk | None = None
        """Received again and again while nothing is posted."""

    def _connect(self, spec: SessionSpec) -> str:
        return "a postbox"

    def _send(self, observation: Observation) -> None:
        pass

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        if not self.posted:
            if self.repeats is None:
                self._closed.wait(timeout_s)
            return self.repeats
        received = self.posted.popleft()
        if isinstance(received, TransportError):
            raise received
        return received

    def _close(self) -> None:
        self.closings += 1

    def _expects_answers(self) -> bool:
        return self.expects

    def came_back(self) -> None:
        self.expects = True
        self._restart_deadline()

    def filtered(self, timestep: int) -> None:
        self._note_answer(timestep)


@pytest.fixture
def postbox() -> Postbox:
    postbox = Postbox()
    postbox.connect(CONTRACT_POLICY)
    return postbox


def chunk(timestep: int, rows: int = 1, width: int = 3) -> ActionChunk:
    return ActionChunk(np.zeros((rows, width), np.float32), timestep)


def receive_until(error: type[TransportError], postbox: Postbox) -> TransportError:
    """Receive, whatever comes, until it raises; for a while."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        try:
            postbox.receive_actions(0.01)
        except error as exc:
            return exc
    raise AssertionError("it never raised")


# The deadline of an answer.


def test_answers_to_old_observations_do_not_hide_that_the_new_one_is_due(postbox: Postbox) -> None:
    postbox.send_observation(contract_observation(0))
    postbox.repeats = chunk(0)
    assert postbox.receive_actions(0.0) is not None
    postbox.send_observation(contract_observation(1))
    assert "timestep 1 within 0.1 s" in str(receive_until(TransportTimeout, postbox))


def test_deadline_is_told_once_and_the_session_goes_on(postbox: Postbox) -> None:
    postbox.send_observation(contract_observation(0))
    receive_until(TransportTimeout, postbox)
    assert postbox.receive_actions(0.2) is None
    postbox.posted.append(chunk(0))
    assert postbox.receive_actions(0.0) is not None
    postbox.send_observation(contract_observation(1))
    assert "timestep 1" in str(receive_until(TransportTimeout, postbox))


def test_nothing_is_due_that_need_not_be_answered(postbox: Postbox) -> None:
    postbox.send_observation(contract_observation(0, must_go=False))
    assert postbox.receive_actions(0.3) is None


@pytest.mark.parametrize("how", ["chunk", "later chunk", "error", "error without a timestep", "filtered"])
def test_nothing_is_due_that_was_answered(postbox: Postbox, how: str) -> None:
    postbox.send_observation(contract_observation(4))
    if how == "later chunk":
        postbox.send_observation(contract_observation(5, must_go=False))
    if how == "filtered":
        postbox.filtered(4)
    else:
        answers = {"chunk": chunk(4), "later chunk": chunk(5), "error": PolicyError("", 4)}
        postbox.posted.append(answers.get(how, PolicyError("")))
        try:
            postbox.receive_actions(0.0)
        except PolicyError:
            assert "error" in how
    assert postbox.receive_actions(0.3) is None


def test_progress_gives_the_next_observation_the_whole_time() -> None:
    """Two are owed; the first's answer comes late, and the second has from then on."""
    postbox = Postbox(TransportOptions(inference_timeout_s=1.0))
    postbox.connect(CONTRACT_POLICY)
    postbox.send_observation(contract_observation(0))
    postbox.send_observation(contract_observation(1))
    assert postbox.receive_actions(0.6) is None
    postbox.posted.append(chunk(0))
    assert postbox.receive_actions(0.0) is not None
    assert postbox.receive_actions(0.6) is None  # 1.2 s after it was asked for
    assert "timestep 1" in str(receive_until(TransportTimeout, postbox))


def test_observation_that_replaces_another_does_not_prolong_its_time(postbox: Postbox) -> None:
    sent = 0

    def send_another() -> bool:
        nonlocal sent
        postbox.send_observation(contract_observation(sent))
        sent += 1
        try:
            return postbox.receive_actions(0.0) is not None
        except TransportTimeout:
            return True

    eventually(send_another)
    assert sent > 1


def test_server_that_is_waited_for_owes_nothing_and_has_the_whole_time_when_it_is_back(postbox: Postbox) -> None:
    postbox.expects = False
    postbox.send_observation(contract_observation(0))
    assert postbox.receive_actions(0.3) is None
    postbox.came_back()
    assert postbox.receive_actions(0.0) is None
    receive_until(TransportTimeout, postbox)


def test_time_that_a_server_was_away_is_not_counted(postbox: Postbox) -> None:
    postbox.send_observation(contract_observation(0))
    assert postbox.receive_actions(0.01) is None
    postbox.expects = False
    assert postbox.receive_actions(0.3) is None
    postbox.expects = True
    assert postbox.receive_actions(0.0) is None
    receive_until(TransportTimeout, postbox)


def test_wait_ends_when_it_should_though_nothing_comes(postbox: Postbox) -> None:
    started_s = time.monotonic()
    assert postbox.receive_actions(0.25) is None
    assert time.monotonic() - started_s >= 0.25


# What the peer sends.


@pytest.mark.parametrize(
    ("received", "said"),
    [
        pytest.param(chunk(8), "answers timestep 8; the newest sent is 7", id="future"),
        pytest.param(chunk(-1), "answers timestep -1", id="past"),
        pytest.param(chunk(7, width=4), r"float32 \(1, 4\).*\(n, 3\)", id="wide"),
        pytest.param(chunk(7, rows=0), "0 actions; agreed were 1 to 5", id="empty"),
        pytest.param(chunk(7, rows=6), "6 actions; agreed were 1 to 5", id="long"),
        pytest.param(ActionChunk(np.zeros(3, np.float32), 7), r"float32 \(3,\)", id="one row"),
        pytest.param(ActionChunk(np.zeros((1, 3)), 7), "float64", id="float64"),  # type: ignore[arg-type]
        pytest.param(ActionChunk(np.full((1, 3), np.nan, np.float32), 7), "timestep 7 .*not finite", id="nan"),
    ],
)
def test_chunk_that_was_not_agreed_ends_the_session(postbox: Postbox, received: ActionChunk, said: str) -> None:
    postbox.send_observation(contract_observation(7))
    postbox.posted.append(received)
    for _ in range(2):
        with pytest.raises(ProtocolError, match=said):
            postbox.receive_actions(0.0)
    with pytest.raises(ProtocolError, match=said):
        postbox.send_observation(contract_observation(8))
    with pytest.raises(ProtocolError, match=said):
        postbox.loan_observation()


def test_error_that_ends_the_session_is_remembered(postbox: Postbox) -> None:
    postbox.posted.extend([PeerGoneError("it died"), chunk(0)])
    for _ in range(2):
        with pytest.raises(PeerGoneError, match="it died"):
            postbox.receive_actions(0.0)
    postbox.close()
    with pytest.raises(TransportClosed):
        postbox.receive_actions(0.0)


# Closing and connecting.


def test_what_a_closing_thread_causes_is_not_the_peers_doing() -> None:
    """The backend sees its connection end under it, and cannot tell whose doing that is."""
    entered = threading.Event()

    class Cut(Postbox):
        def _receive(self, timeout_s: float) -> ActionChunk | None:
            entered.set()
            assert self._closed.wait(WAIT_S)
            raise PeerGoneError("the connection ended")

    postbox = Cut()
    postbox.connect(CONTRACT_POLICY)
    raised: list[BaseException] = []

    def receive() -> None:
        try:
            postbox.receive_actions(WAIT_S)
        except TransportError as exc:
            raised.append(exc)

    receiver = threading.Thread(target=receive)
    receiver.start()
    assert entered.wait(WAIT_S)
    postbox.close()
    receiver.join(WAIT_S)
    assert [type(exc) for exc in raised] == [TransportClosed]


def test_connection_that_fails_is_closed() -> None:
    class Refused(Postbox):
        def _connect(self, spec: SessionSpec) -> str:
            raise PeerGoneError("at once")

    postbox = Refused()
    with pytest.raises(PeerGoneError):
        postbox.connect(CONTRACT_POLICY)
    postbox.close()
    assert postbox.closed
    assert postbox.closings == 1


def test_observation_that_could_not_be_sent_does_not_count() -> None:
    class Full(Postbox):
        full = True

        def _send(self, observation: Observation) -> None:
            if self.full:
                raise InvalidMessageError("too long for this wire")

    postbox = Full()
    postbox.connect(CONTRACT_POLICY)
    with pytest.raises(InvalidMessageError):
        postbox.send_observation(contract_observation(5))
    assert postbox.receive_actions(0.3) is None  # nor is its answer due
    postbox.full = False
    postbox.send_observation(contract_observation(4))


def test_description_is_known_once_it_is_connected() -> None:
    postbox = Postbox()
    assert postbox.description == ""
    postbox.connect(CONTRACT_POLICY)
    assert postbox.description == "a postbox"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("connect_timeout_s", 0.0, "positive"),
        ("inference_timeout_s", -1.0, "positive"),
        ("setup_timeout_s", float("nan"), "positive"),
        ("reconnect_timeout_s", -0.1, "0 or more"),
        ("inference_timeout_s", 1e9, "at most"),
    ],
)
def test_deadlines_have_bounds(name: str, value: float, said: str) -> None:
    with pytest.raises(InvalidMessageError, match=f"{name} must be .*{said}"):
        TransportOptions(**{name: value})
    TransportOptions(reconnect_timeout_s=0.0)
