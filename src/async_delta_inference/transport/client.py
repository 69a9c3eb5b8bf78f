"""`Transport`: the client half of a transport, as a control loop sees it.

The public methods hold what is the same for every backend (state, checks, loans, the deadline of an answer); a backend
implements the hooks whose names begin with an underscore and overrides nothing else. The rules a backend must keep are
tests: `async_delta_inference.transport.testing`.

Over shared memory, client and server empty each other's caches and branch predictors at every exchange, so that each
operation costs three to five times what it costs in a loop of its own. Hence the plain attributes, the few calls, and
the checks that look for what is as it should be and ask what is wrong only then.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import (
    InvalidMessageError,
    LoanError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    TransportClosed,
    TransportTimeout,
)
from async_delta_inference.transport.action_prefix import NO_PREFIX, PrefixLimits
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.deadlines import AnswerDeadline, TransportOptions
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.messages import (
    MAX_DELAY_STEPS,
    ActionChunk,
    Observation,
    PastObservation,
    SessionSpec,
)

__all__ = ["Transport"]

_SLICE_S = 1.0
"""Bound of one wait of a backend's: the deadline of an answer is looked at in between."""

_COUNT_LIMIT = 2**63
_UINT8 = np.dtype(np.uint8)
_FLOAT32 = np.dtype(np.float32)


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
        self._spec: SessionSpec | None = None
        self._description = ""
        self._computation: Computation = {}
        self._n_obs_steps = 1
        self._prefix = NO_PREFIX
        self._wants_prefix = False
        self._closed = threading.Event()
        self._close_lock = threading.Lock()
        self._failure: PeerGoneError | ProtocolError | None = None
        self._loan: Observation | None = None
        self._loan_images: dict[str, NDArray[np.uint8]] = {}
        self._loan_state: NDArray[np.float32] | None = None
        self._loan_history: tuple[PastObservation, ...] = ()
        # Connected, not closed, not failed: one look on the path of every message instead of three.
        self._usable = False
        # What every message is compared with.
        self._state_shape: tuple[int, ...] = ()
        self._image_shapes: tuple[tuple[str, tuple[int, int, int]], ...] = ()
        self._whole_chunk = (0, 0)
        self._known_task = ""
        self._last_sent_timestep = -1
        self._deadline = AnswerDeadline(self.options.inference_timeout_s)
        self._slice_s = min(_SLICE_S, self.options.inference_timeout_s)

    # What a control loop calls.

    def connect(self, spec: SessionSpec) -> None:
        """Reach the server and have it set up the policy. Once per transport; on an error the transport is closed.

        Raises:
            PeerUnreachableError: Nobody answers at the address within ``connect_timeout_s``.
            SetupRefusedError: The server refuses the policy type, the checkpoint or the schema; the message says why.
            TransportTimeout: The policy was not set up within ``setup_timeout_s``.
            TransportClosed: Connected before, or closed.
        """
        if self._closed.is_set() or self._spec is not None:
            raise TransportClosed("a transport connects once: open a new one")
        self._spec = spec
        self._state_shape = spec.features.state_shape
        self._image_shapes = spec.features.image_shapes
        self._whole_chunk = (spec.actions_per_chunk, spec.action_dim)
        try:
            self._description = self._connect(spec)
        except BaseException:
            self.close()
            raise
        self._wants_prefix = bool(self._prefix)
        with self._close_lock:
            self._usable = not self._closed.is_set()

    @property
    def description(self) -> str:
        """What the server says that it serves, once connected; empty where its protocol has no word for that."""
        return self._description

    @property
    def computation(self) -> Computation:
        """How the server says that its policy computes, once connected; empty where nobody says it."""
        return self._computation

    @property
    def spoken(self) -> str:
        """How messages travel, in words, once connected, where a backend has a choice that results may depend on."""
        return ""

    @property
    def n_obs_steps(self) -> int:
        """How many successive observations the policy looks at, once connected; one more than a history must have."""
        return self._n_obs_steps

    @property
    def prefix(self) -> PrefixLimits:
        """How many of the robot's own actions the policy wants to be told of, once connected: `Observation.prefix`."""
        return self._prefix

    def send_observation(self, observation: Observation) -> None:
        """Hand an observation to the server. Takes no longer than a copy; the caller's arrays are not retained.

        A server that is busy answers the newest observation and drops older ones. A loaned observation is not copied
        where the backend's memory is the server's, too; its arrays are read-only from here on.

        Args:
            observation: One's own or the current loan. Timesteps must not decrease within a session.

        Raises:
            InvalidMessageError: It does not fit the features agreed at connect.
            LoanError: It was a loan of another transport, or was sent or returned before.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed.
        """
        timestep = observation.timestep
        timestamp_s = observation.timestamp_s
        delay = observation.inference_delay
        loaned = observation.loan is not None
        if not (
            self._usable
            and type(timestep) is type(observation.episode) is int
            and type(timestamp_s) is float
            and timestamp_s - timestamp_s == 0.0
            and self._last_sent_timestep <= timestep < _COUNT_LIMIT
            and 0 <= observation.episode < _COUNT_LIMIT
            and (delay is None or (type(delay) is int and 0 <= delay <= MAX_DELAY_STEPS))
            and observation.task == self._known_task
            and observation.prefix is None
            and not self._wants_prefix
            and (self._is_intact(observation) if loaned else self._fits(observation))
        ):
            self._look_again(observation)
        before = self._last_sent_timestep
        # First: the answer may be there before `_send` returns.
        self._last_sent_timestep = timestep
        try:
            self._send(observation)
        except (PeerGoneError, ProtocolError) as exc:
            self._remember_failure(exc)
            raise
        except BaseException:
            self._last_sent_timestep = before
            raise
        if observation.must_go:
            self._deadline.due_timestep = timestep
        if loaned:
            self._retire_loan()

    def receive_actions(self, timeout_s: float) -> ActionChunk | None:
        """The next chunk, in order, none lost; or None when none came within ``timeout_s``.

        Args:
            timeout_s: How long to wait; 0 is a poll.

        Raises:
            PolicyError: The policy raised on an observation. The session goes on.
            TransportTimeout: An observation that must be answered was not, within ``inference_timeout_s``.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed, also by another thread during the wait.
        """
        if not self._usable:
            self._refuse()
        waited_s = 0.0 if timeout_s <= 0.0 else timeout_s if timeout_s < self._slice_s else self._slice_s
        try:
            chunk = self._receive(waited_s)
            if chunk is None:
                chunk = self._wait_on(timeout_s, waited_s)
                if chunk is None:
                    return None
            actions, timestep = chunk.actions, chunk.timestep
            if (
                actions.shape != self._whole_chunk
                or actions.dtype is not _FLOAT32
                or not 0 <= timestep <= self._last_sent_timestep
                or not is_finite(chunk.memory or actions.tobytes())
            ):
                chunk.check(*self._whole_chunk, self._last_sent_timestep)
        except (PeerGoneError, ProtocolError) as exc:
            self._remember_failure(exc)
            raise
        except PolicyError as exc:
            self._note_answer(self._deadline.due_timestep if exc.timestep is None else exc.timestep)
            raise
        if timestep > self._deadline.answered_timestep:
            self._deadline.note_answer(timestep)
        elif self._deadline.is_due:
            self._check_deadline(0.0)  # An answer, but to something old: it must not hide that the new one is due.
        return chunk

    def loan_observation(self) -> Observation:
        """An observation whose arrays the caller fills in place and passes to `send_observation` or `return_loan`.

        Its scalars are fresh; the contents of its arrays are undefined. One loan is out at a time.

        Raises:
            LoanError: The last loan was neither sent nor returned.
            PeerGoneError, ProtocolError: The session is over.
            TransportClosed: Not connected, or closed.
        """
        spec = self._spec
        if not self._usable or spec is None:
            self._refuse()
        if self._loan is not None:
            raise LoanError("a loaned observation is still out: send it or pass it to return_loan()")
        try:
            observation = self._lend(spec)
        except (PeerGoneError, ProtocolError) as exc:
            self._remember_failure(exc)
            raise
        observation.loan = self
        self._loan = observation
        self._loan_images = observation.images.copy()
        self._loan_state = observation.state
        self._loan_history = observation.history
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
    def _connect(self, spec: SessionSpec) -> str:
        """Handshake and policy set-up. On an exception `close` follows.

        A backend that carries a history sets ``_n_obs_steps``, one that carries the robot's actions ``_prefix``.

        Returns:
            What the server says that it serves; empty where it says nothing.
        """

    @abstractmethod
    def _send(self, observation: Observation) -> None:
        """Send a checked observation; ``observation.loan`` tells whether its memory came from `_lend`."""

    @abstractmethod
    def _receive(self, timeout_s: float) -> ActionChunk | None:
        """The next chunk, or None after the whole of ``timeout_s``; what is no chunk does not end the wait.

        It must return or raise soon after `_close` is called from another thread.
        It is looked at afterwards: shape, dtype, timestep, finiteness.
        """

    @abstractmethod
    def _close(self) -> None:
        """Release everything. Called once, also after a failed or absent `_connect`, from any thread."""

    def _lend(self, spec: SessionSpec) -> Observation:
        """Memory for a loan; ordinary memory unless the backend has something better."""
        return Observation.empty(spec.features, self._n_obs_steps)

    def _take_back(self, observation: Observation) -> None:  # noqa: B027 - ordinary memory needs nothing
        """Undo `_lend` for a loan that is returned unsent."""

    def _expects_answers(self) -> bool:
        """Whether an answer can come now: False stops the deadline while a lost server is being waited for."""
        return True

    # What a backend may call.

    def _note_answer(self, timestep: int) -> None:
        """An observation was answered with something that is no chunk. In the receiving thread."""
        self._deadline.note_answer(timestep)

    def _restart_deadline(self) -> None:
        """The server came back: an answer has the whole time again."""
        self._deadline.restart()

    # Shared by the methods above.

    def _fits(self, observation: Observation) -> bool:
        """Whether the arrays of the caller's own observation are those that were agreed."""
        state, images = observation.state, observation.images
        if (
            self._n_obs_steps != 1
            or observation.history
            or type(state) is not np.ndarray
            or state.shape != self._state_shape
            or state.dtype is not _FLOAT32
            or len(images) != len(self._image_shapes)
        ):
            return False
        for name, shape in self._image_shapes:
            image = images.get(name)
            if type(image) is not np.ndarray or image.shape != shape or image.dtype is not _UINT8:
                return False
        return True

    def _is_intact(self, observation: Observation) -> bool:
        """Whether it is the current loan, with the arrays that were lent."""
        images, lent = observation.images, self._loan_images
        if (
            observation is not self._loan
            or observation.state is not self._loan_state
            or len(images) != len(lent)
            or observation.history is not self._loan_history
        ):
            return False
        for name in lent:  # noqa: SIM110 - a generator costs half a microsecond
            if images.get(name) is not lent[name]:
                return False
        return True

    def _look_again(self, observation: Observation) -> None:
        """Say what is wrong with an observation; return if nothing is, only unusual."""
        spec = self._spec
        if not self._usable or spec is None:
            self._refuse()
        if observation.loan is None:
            observation.check(spec.features, self._n_obs_steps)
        else:
            if observation is not self._loan:
                raise LoanError("this loaned observation was sent or returned before, or another transport loaned it")
            if not self._is_intact(observation):
                raise LoanError("a loaned observation is filled in place: its arrays must not be replaced by others")
            observation.check_scalars()
        observation.check_prefix(self._prefix, spec.action_dim)
        if observation.timestep < self._last_sent_timestep:
            raise InvalidMessageError(
                f"timesteps must not decrease: {observation.timestep} after {self._last_sent_timestep}"
            )
        self._known_task = observation.task

    def _wait_on(self, timeout_s: float, waited_s: float) -> ActionChunk | None:
        """After a wait in vain: the rest of it, slice by slice, with an eye on the deadline."""
        until_s = time.monotonic() + timeout_s - waited_s
        while True:
            if self._closed.is_set():
                raise TransportClosed("the transport was closed during the wait")
            if self._deadline.is_due:
                self._check_deadline(waited_s)
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                return None
            waited_s = min(left_s, self._slice_s)
            chunk = self._receive(waited_s)
            if chunk is not None:
                return chunk

    def _check_deadline(self, waited_s: float) -> None:
        """An answer is owed and has not come."""
        if not self._expects_answers():
            self._deadline.restart()
        elif (timestep := self._deadline.overdue_timestep(waited_s)) is not None:
            raise TransportTimeout(
                f"the policy server at {self.address} has not answered timestep {timestep} within "
                f"{self.options.inference_timeout_s:g} s: is its inference slow? Raise inference_timeout_s, or look "
                "into its log"
            )

    def _refuse(self) -> NoReturn:
        """Raise what makes this transport unusable."""
        if self._closed.is_set():
            raise TransportClosed("the transport is closed")
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))
        raise TransportClosed("the transport is not connected: call connect() first")

    def _remember_failure(self, failure: PeerGoneError | ProtocolError) -> None:
        """Keep the error that ends the session, so that every later call says the same."""
        if self._closed.is_set():
            # What a call sees whose transport another thread takes away is that thread's doing, not the peer's.
            raise TransportClosed("the transport was closed meanwhile") from failure
        self._usable = False
        if self._failure is None:
            # A copy: the traceback of what is raised holds the frames of this call, and with them the session's memory.
            self._failure = type(failure)(str(failure))

    def _retire_loan(self) -> None:
        self._loan = None
        # Memory that now belongs to the server: a late write must raise, not corrupt.
        if self._loan_state is not None:
            self._loan_state.setflags(write=False)
        for image in self._loan_images.values():
            image.setflags(write=False)
        for past in self._loan_history:
            past.state.setflags(write=False)
            for image in past.images.values():
                image.setflags(write=False)
        self._loan_state, self._loan_images, self._loan_history = None, {}, ()
