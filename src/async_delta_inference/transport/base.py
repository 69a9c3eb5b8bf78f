"""`Transport`: the link between a control loop and a policy server, as the control loop sees it.

The public methods hold what is the same for every backend (state, checks, loans); a backend implements the hooks whose
names begin with an underscore. The rules a backend must keep are tests: `async_delta_inference.transport.testing`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from async_delta_inference.errors import (
    InvalidMessageError,
    LoanError,
    PeerGoneError,
    ProtocolError,
    TransportClosed,
)
from async_delta_inference.transport.messages import ActionChunk, Observation, PolicySpec

__all__ = ["Transport", "TransportOptions"]


@dataclass(frozen=True)
class TransportOptions:
    """Deadlines that every backend keeps, in seconds.

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
        for name in ("connect_timeout_s", "setup_timeout_s", "inference_timeout_s"):
            if getattr(self, name) <= 0:
                raise InvalidMessageError(f"{name} must be positive, got {getattr(self, name)}")
        if self.reconnect_timeout_s < 0:
            raise InvalidMessageError(f"reconnect_timeout_s must not be negative, got {self.reconnect_timeout_s}")


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
        self._policy: PolicySpec | None = None
        self._closed = threading.Event()
        self._close_lock = threading.Lock()
        self._failure: PeerGoneError | ProtocolError | None = None
        self._loan: Observation | None = None
        self._last_sent_timestep = -1

    # What a control loop calls.

    def connect(self, policy: PolicySpec) -> None:
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
        policy = self._check_open()
        if observation.loan is not None and observation is not self._loan:
            raise LoanError("this loaned observation was sent or returned before, or another transport loaned it")
        observation.check(policy.features)
        if observation.timestep < self._last_sent_timestep:
            raise InvalidMessageError(
                f"timesteps must not decrease: {observation.timestep} after {self._last_sent_timestep}"
            )
        with self._remember_failure():
            self._send(observation)
        self._last_sent_timestep = observation.timestep
        if observation is self._loan:
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
        policy = self._check_open()
        with self._remember_failure():
            chunk = self._receive(max(0.0, timeout_s))
            if chunk is None:
                if self._closed.is_set():
                    raise TransportClosed("the transport was closed during the wait")
                return None
            _check_chunk(chunk, policy)
        return chunk

    def loan_observation(self) -> Observation:
        """An observation whose arrays the caller fills in place and passes to `send_observation` or `return_loan`.

        Its scalars are fresh; the contents of its arrays are undefined. One loan is out at a time.

        Raises:
            LoanError: The last loan was neither sent nor returned.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed.
        """
        policy = self._check_open()
        if self._loan is not None:
            raise LoanError("a loaned observation is still out: send it or pass it to return_loan()")
        with self._remember_failure():
            observation = self._lend(policy)
        observation.loan = self
        self._loan = observation
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
    def _connect(self, policy: PolicySpec) -> None:
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

    def _lend(self, policy: PolicySpec) -> Observation:
        """Memory for a loan; ordinary memory unless the backend has something better."""
        return Observation.empty(policy.features)

    def _take_back(self, observation: Observation) -> None:  # noqa: B027 - ordinary memory needs nothing
        """Undo `_lend` for a loan that is returned unsent."""

    # Shared by the methods above.

    def _check_open(self) -> PolicySpec:
        if self._closed.is_set():
            raise TransportClosed("the transport is closed")
        if self._policy is None:
            raise TransportClosed("the transport is not connected: call connect() first")
        if self._failure is not None:
            raise type(self._failure)(str(self._failure)) from self._failure
        return self._policy

    @contextmanager
    def _remember_failure(self) -> Iterator[None]:
        """Keep the error that ends the session, so that every later call says the same."""
        try:
            yield
        except (PeerGoneError, ProtocolError) as exc:
            self._failure = self._failure or exc
            raise

    def _retire_loan(self) -> None:
        loan, self._loan = self._loan, None
        if loan is not None:
            # Memory that now belongs to the server: a late write must raise, not corrupt.
            loan.state.flags.writeable = False
            for image in loan.images.values():
                image.flags.writeable = False


def _check_chunk(chunk: ActionChunk, policy: PolicySpec) -> None:
    """Refuse a chunk that the peer should not have sent.

    Raises:
        ProtocolError: Not float32 (1..actions_per_chunk, action_dim), or not finite.
    """
    actions = chunk.actions
    if actions.ndim != 2 or actions.shape[1] != policy.action_dim or actions.dtype != np.float32:
        raise ProtocolError(
            f"the server sent actions of {actions.dtype} {actions.shape}; the environment takes float32 "
            f"(n, {policy.action_dim})"
        )
    if not 1 <= len(actions) <= policy.actions_per_chunk:
        raise ProtocolError(f"the server sent {len(actions)} actions; agreed were 1 to {policy.actions_per_chunk}")
    if not np.isfinite(actions).all():
        raise ProtocolError(f"the chunk of timestep {chunk.timestep} has actions that are not finite")
