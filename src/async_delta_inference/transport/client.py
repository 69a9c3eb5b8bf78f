"""`Transport`: the link between a control loop and a policy server, as the control loop sees it.

The public methods hold what is the same for every backend (state, checks, loans); a backend implements the hooks whose
names begin with an underscore. The rules a backend must keep are tests: `async_delta_inference.transport.testing`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import (
    InvalidMessageError,
    LoanError,
    PeerGoneError,
    ProtocolError,
    TransportClosed,
)
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec

__all__ = ["LONGEST_TIMEOUT_S", "Transport", "TransportOptions", "check_finite"]

LONGEST_TIMEOUT_S = 1e8
"""Three years: above any wait, below what the system's own timers take."""

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class TransportOptions:
    """Deadlines that every backend keeps, in seconds, each at most `LONGEST_TIMEOUT_S`.

    Args:
        connect_timeout_s: For the server to be reached and to answer the handshake.
        setup_timeout_s: For the server to load the policy.
        inference_timeout_s: For one observation to be answered.
        reconnect_timeout_s: For a server that went away to come back; 0 gives up at once.
    """

    connect_timeout_s: float = 20.0
    setup_timeout_s: float = 300.0
    inference_timeout_s: float = 120.0
    reconnect_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "setup_timeout_s", "inference_timeout_s", "reconnect_timeout_s"):
            value_s = getattr(self, name)
            may_be_zero = name == "reconnect_timeout_s"
            if not (0 < value_s <= LONGEST_TIMEOUT_S or (may_be_zero and value_s == 0)):
                least = "0 or more" if may_be_zero else "positive"
                raise InvalidMessageError(
                    f"{name} must be {least} and at most {LONGEST_TIMEOUT_S:g} seconds, got {value_s:g}"
                )


class Transport(ABC):
    """A session with one policy server.

    One thread sends (and takes loans), one thread receives, any thread closes; the two may be the same. Use it as a
    context manager, or call `close`.

    Args:
        address: What follows ``scheme://`` in the URI.
        options: Deadlines.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        self.address = address
        self.options = options or TransportOptions()
        self._policy: SessionSpec | None = None
        self._closed = threading.Event()
        self._close_lock = threading.Lock()
        self._failure: PeerGoneError | ProtocolError | None = None
        self._loan: Observation | None = None
        self._loan_images: dict[str, NDArray[np.uint8]] = {}
        self._loan_state: NDArray[np.float32] | None = None
        self._last_sent_timestep = -1
        # Connected, not closed, not failed: one look on the path of every message instead of three.
        self._usable = False

    # What a control loop calls.

    def connect(self, policy: SessionSpec) -> None:
        """Reach the server and have it set up the policy. Once per transport; on an error the transport is closed.

        Raises:
            PeerUnreachableError: Nobody answers at the address within ``connect_timeout_s``.
            SetupRefusedError: The server refuses the policy type, the checkpoint or the schema; the message says why.
            TransportTimeout: The policy was not set up within ``setup_timeout_s``.
            TransportClosed: Connected before, or closed.
        """
        if self._closed.is_set() or self._policy is not None:
            raise TransportClosed("a transport connects once: open a new one")
        self._policy = policy
        try:
            self._connect(policy)
        except BaseException:
            self.close()
            raise
        with self._close_lock:
            self._usable = not self._closed.is_set()

    def send_observation(self, observation: Observation) -> None:
        """Hand an observation to the server. Takes no longer than a copy; the caller's arrays are not retained.

        A server that is busy answers the newest observation and drops older ones. A loaned observation is sent without
        a copy where the backend can do that; its arrays are read-only from here on.

        Args:
            observation: One's own or the current loan. Timesteps must not decrease within a session.

        Raises:
            InvalidMessageError: It does not fit the features agreed at connect.
            LoanError: It was a loan of another transport, or was sent or returned before.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed.
        """
        policy = self._policy
        if not self._usable or policy is None:
            self._refuse()
        loaned = observation.loan is not None
        if loaned:
            self._check_loan(observation)
            observation.check_scalars()
        else:
            observation.check(policy.features)
        timestep = observation.timestep
        if timestep < self._last_sent_timestep:
            raise InvalidMessageError(f"timesteps must not decrease: {timestep} after {self._last_sent_timestep}")
        try:
            self._send(observation)
        except (PeerGoneError, ProtocolError) as exc:
            self._remember_failure(exc)
            raise
        self._last_sent_timestep = timestep
        if loaned:
            self._retire_loan()

    def receive_actions(self, timeout_s: float) -> ActionChunk | None:
        """The next chunk, in order, none lost; or None when none came within ``timeout_s``.

        Args:
            timeout_s: How long to wait; 0 is a poll.

        Raises:
            PolicyError: The policy raised on an observation. The session goes on.
            TransportTimeout: An observation was not answered within ``inference_timeout_s``.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed, also by another thread during the wait.
        """
        policy = self._policy
        if not self._usable or policy is None:
            self._refuse()
        try:
            chunk = self._receive(timeout_s if timeout_s > 0.0 else 0.0)
            if chunk is not None:
                _check_chunk(chunk, policy)
                return chunk
        except (PeerGoneError, ProtocolError) as exc:
            self._remember_failure(exc)
            raise
        if self._closed.is_set():
            raise TransportClosed("the transport was closed during the wait")
        return None

    def loan_observation(self) -> Observation:
        """An observation whose arrays the caller fills in place and passes to `send_observation` or `return_loan`.

        Its scalars are fresh; the contents of its arrays are undefined. One loan is out at a time.

        Raises:
            LoanError: The last loan was neither sent nor returned.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed.
        """
        policy = self._policy
        if not self._usable or policy is None:
            self._refuse()
        if self._loan is not None:
            raise LoanError("a loaned observation is still out: send it or pass it to return_loan()")
        try:
            observation = self._lend(policy)
        except (PeerGoneError, ProtocolError) as exc:
            self._remember_failure(exc)
            raise
        observation.loan = self
        self._loan = observation
        self._loan_images = observation.images.copy()
        self._loan_state = observation.state
        return observation

    def return_loan(self, observation: Observation) -> None:
        """Give a loan back unsent.

        Raises:
            LoanError: It is not the current loan.
        """
        if observation is not self._loan or self._loan is None:
            raise LoanError("only the current loan can be returned")
        self._take_back(observation)
        self._retire_loan()

    def close(self) -> None:
        """End the session; idempotent, from any thread. A thread waiting in `receive_actions` gets `TransportClosed`.

        Chunks not yet received are dropped. A loan that is still out becomes read-only.
        """
        with self._close_lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._usable = False
        if self._loan is not None:
            self._retire_loan()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    # What a backend implements.

    @abstractmethod
    def _connect(self, policy: SessionSpec) -> None:
        """Handshake and policy set-up. On an exception `close` follows."""

    @abstractmethod
    def _send(self, observation: Observation) -> None:
        """Send a checked observation; ``observation.loan`` tells whether its memory came from `_lend`."""

    @abstractmethod
    def _receive(self, timeout_s: float) -> ActionChunk | None:
        """The next chunk or None; must return or raise soon after `_close` is called from another thread."""

    @abstractmethod
    def _close(self) -> None:
        """Release everything. Called once, also after a failed or absent `_connect`, from any thread."""

    def _lend(self, policy: SessionSpec) -> Observation:
        """Memory for a loan; ordinary memory unless the backend has something better."""
        return Observation.empty(policy.features)

    def _take_back(self, observation: Observation) -> None:  # noqa: B027 - ordinary memory needs nothing
        """Undo `_lend` for a loan that is returned unsent."""

    # Shared by the methods above.

    def _refuse(self) -> NoReturn:
        """Raise what makes this transport unusable."""
        if self._closed.is_set():
            raise TransportClosed("the transport is closed")
        if self._failure is not None:
            raise type(self._failure)(str(self._failure)) from self._failure
        raise TransportClosed("the transport is not connected: call connect() first")

    def _remember_failure(self, failure: PeerGoneError | ProtocolError) -> None:
        """Keep the error that ends the session, so that every later call says the same."""
        self._usable = False
        self._failure = self._failure or failure

    def _check_loan(self, observation: Observation) -> None:
        if observation is not self._loan:
            raise LoanError("this loaned observation was sent or returned before, or another transport loaned it")
        images = observation.images
        replaced = observation.state is not self._loan_state or len(images) != len(self._loan_images)
        for name, image in self._loan_images.items():
            if images.get(name) is not image:
                replaced = True
        if replaced:
            raise LoanError("a loaned observation is filled in place: its arrays must not be replaced by others")

    def _retire_loan(self) -> None:
        self._loan = None
        # Memory that now belongs to the server: a late write must raise, not corrupt.
        if self._loan_state is not None:
            self._loan_state.setflags(write=False)
        for image in self._loan_images.values():
            image.setflags(write=False)


def _check_chunk(chunk: ActionChunk, policy: SessionSpec) -> None:
    """Refuse a chunk that the peer should not have sent.

    Raises:
        ProtocolError: Not float32 (1..actions_per_chunk, action_dim), or not finite.
    """
    actions = chunk.actions
    shape = actions.shape
    # As in Observation.check: look for what is as it should be, and ask what is wrong only then.
    if len(shape) != 2 or shape[1] != policy.action_dim or actions.dtype is not _FLOAT32:
        _check_form(actions, policy)
    if not 1 <= shape[0] <= policy.actions_per_chunk:
        raise ProtocolError(f"the server sent {len(actions)} actions; agreed were 1 to {policy.actions_per_chunk}")
    check_finite(actions, chunk.timestep)


def check_finite(actions: NDArray[np.float32], timestep: int) -> None:
    """Refuse actions (n, A) that are not finite.

    Raises:
        ProtocolError: Naming the timestep.
    """
    if not is_finite(actions):
        raise ProtocolError(f"the chunk of timestep {timestep} has actions that are not finite")


def _check_form(actions: NDArray[np.float32], policy: SessionSpec) -> None:
    if actions.ndim != 2 or actions.shape[1] != policy.action_dim or actions.dtype != np.float32:
        raise ProtocolError(
            f"the server sent actions of {actions.dtype} {actions.shape}; the environment takes float32 "
            f"(n, {policy.action_dim})"
        )
