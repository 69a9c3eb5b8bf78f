"""`LeRobotLink`: two threads around `PendingObservations`, so that the control loop never waits for the network."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import grpc

from async_delta_inference import stages
from async_delta_inference.errors import (
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.grpc.client.calls import CALL_ERRORS, PolicyServerCalls, map_call_error
from async_delta_inference.transport.grpc.client.link import Line, Link, Owner
from async_delta_inference.transport.grpc.client.pending import Outgoing, PendingObservations
from async_delta_inference.transport.grpc.client.setup import SessionSetup
from async_delta_inference.transport.grpc.wire import decode_actions, encode_observation
from async_delta_inference.transport.mailbox import MAX_REPLIES, Filtered, Reply
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec

__all__ = ["LeRobotLink"]

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0

_MOST_LOSSES = 5
"""Servers lost in a row, each with an observation that it had to answer: the next one would be, too."""


class LeRobotLink(Link):
    """A session with LeRobot's own PolicyServer as it is, or with a server of ours in LeRobot's dialect.

    A server that restarts is waited for and set up again; the newest unanswered observation is sent again. PolicyServer
    has no word for an observation's ``episode``, nor for what it serves: over it, no policy is reset, and `connect`
    returns an empty text.

    Args:
        line: To the server.
        owner: The transport.
    """

    dialect = "lerobot"

    def __init__(self, line: Line, owner: Owner) -> None:
        self.address = address = line.address
        self.options = owner.options
        self._line = line
        super().__init__(owner)
        self._closed = owner.closed
        self._spec: SessionSpec | None = None
        self._condition = threading.Condition()
        self._pending = PendingObservations()
        self._replies: deque[Reply] = deque()
        # Sessions with the server that were lost, and of those, what was set up again.
        self._lost = 0
        self._restored = 0
        self._losses_without_answer = 0
        self._why_lost = f"the policy server at {address} went away"
        self._over: PeerGoneError | ProtocolError | None = None
        self._calls: PolicyServerCalls | None = None
        self._setup: SessionSetup | None = None
        self._is_ours = False
        self._threads: list[threading.Thread] = []

    # What the transport asks for.

    def connect(self, spec: SessionSpec) -> str:
        """See `Link`."""
        if spec.options.rtc.enabled:
            raise SetupRefusedError(
                f"--rtc.enabled=true: LeRobot's gRPC protocol, which {self._line.address} speaks, cannot carry the "
                "inference delay; serve with async-delta-serve over its own protocol or over shm, or leave the flag out"
            )
        self._spec = spec
        self._calls = PolicyServerCalls(self._line, self.options, self._on_disconnect)
        self._setup = SessionSetup(self._calls, spec, self.options, self._closed)
        self._setup.reach(time.monotonic() + self.options.connect_timeout_s)
        description = self._set_up(self._calls, self._setup)
        if description is None:
            logger.warning(
                "the policy server at %s is LeRobot's own, which has one policy for all its clients: another that asks "
                "it for another checkpoint changes this one's, and nobody is told; async-delta-serve refuses that",
                self.address,
            )
        for work in (self._send_next, self._receive_next):
            thread = threading.Thread(
                target=self._repeat, args=(work,), name=f"grpc-transport{work.__name__}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return description or ""

    def send(self, observation: Observation) -> None:
        """See `Link`."""
        assert self._spec is not None
        data = encode_observation(observation, self._spec.features)
        if stages.recorder is not None:
            stages.recorder.mark(stages.ENCODE, observation.timestep)
        with self._condition:
            if self._over is not None:
                raise self._over
            self._pending.post(Outgoing(observation.timestep, observation.must_go, data, observation.episode))
            self._condition.notify_all()

    def next_reply(self, timeout_s: float) -> Reply | None:
        """See `Link`."""
        with self._condition:
            if timeout_s > 0.0:
                self._condition.wait_for(lambda: self._replies or self._finished(), timeout_s)
            if self._closed.is_set():
                return None
            if not self._replies:
                if self._over is not None:
                    raise self._over
                return None
            reply = self._replies.popleft()
            self._condition.notify_all()
        return reply

    def close(self) -> None:
        """See `Link`."""
        with self._condition:
            self._condition.notify_all()
        if self._calls is not None:
            if self._is_ours and not self._disconnected:
                self._say_goodbye(self._calls)
            self._calls.close()
        # Cancels what is under way.
        self._line.channel.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_TIMEOUT_S)

    def expects_answers(self) -> bool:
        """See `Link`."""
        return not self._disconnected

    def _say_goodbye(self, calls: PolicyServerCalls) -> None:
        try:
            calls.say_goodbye()
        except CALL_ERRORS:
            return  # It is gone, or will see the connection go.

    @property
    def _disconnected(self) -> bool:
        """Whether the server that was set up is gone."""
        return self._lost != self._restored

    def _finished(self) -> bool:
        return self._over is not None or self._closed.is_set()

    # The two threads.

    def _repeat(self, work: Callable[[], None]) -> None:
        """Whatever a thread of ours meets, the caller hears of it."""
        try:
            while not self._finished():
                work()
        except Exception as exc:  # noqa: BLE001 - nobody else would hear of it
            error = ProtocolError(f"the connection to {self.address} failed: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._end(error)

    def _send_next(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._finished() or (self._pending.has_waiting and not self._disconnected))
            if self._finished():
                return
            outgoing = self._pending.begin_send()
        assert self._calls is not None
        try:
            self._calls.send_observation(outgoing.data, outgoing.episode)
        except CALL_ERRORS as exc:
            self._call_failed(exc, outgoing)
        else:
            with self._condition:
                self._pending.acknowledge(outgoing)
                self._condition.notify_all()

    def _receive_next(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._finished() or self._disconnected or self._can_ask())
            if self._finished():
                return
            disconnected, due = self._disconnected, self._pending.newest_acknowledged()
        if disconnected:
            self._reconnect()
        else:
            self._get_actions(due)

    def _can_ask(self) -> bool:
        """Whether there is room for an answer, and one is owed; with the condition held.

        A server of ours is always asked: it has nothing until it has, and each side sees the other one go.
        """
        is_owed = self._is_ours or self._pending.newest_acknowledged() is not None
        return is_owed and len(self._replies) < MAX_REPLIES

    def _get_actions(self, due: Outgoing | None) -> None:
        assert self._calls is not None
        assert self._spec is not None
        try:
            data, filtered = self._calls.get_actions()
        except CALL_ERRORS as exc:
            self._call_failed(exc, due)
            return
        if not data:
            if not self._is_ours:
                self._answered_empty(due)
            elif filtered is not None:
                self._answered(Filtered(filtered))
            return
        try:
            reply = self._read(data, self._spec.actions_per_chunk)
        except ProtocolError as exc:
            self._end(exc)
        else:
            self._answered(reply)

    def _read(self, data: bytes, longest_chunk: int) -> ActionChunk | PolicyError:
        chunk = decode_actions(data, longest_chunk)
        # A server of ours has looked. PolicyServer sends on what the policy computes, and goes on afterwards.
        if self._is_ours or is_finite(chunk.memory or b""):
            return chunk
        timestep = chunk.timestep
        return PolicyError(f"the policy returned actions that are not finite for timestep {timestep}", timestep)

    def _answered(self, reply: Reply) -> None:
        with self._condition:
            self._losses_without_answer = 0
            if reply.timestep is not None:
                self._pending.answered(reply.timestep)
            self._replies.append(reply)
            self._condition.notify_all()

    def _answered_empty(self, due: Outgoing | None) -> None:
        """PolicyServer has nothing, be it because its inference failed."""
        with self._condition:
            # A server that was restarted without our noticing has no policy and says nothing either.
            if due is None or self._disconnected:
                return
            if self._pending.answered_empty(due):
                self._replies.append(
                    PolicyError(
                        f"the policy server at {self.address} returned nothing for timestep {due.timestep}: its "
                        "inference failed, see its log",
                        due.timestep,
                    )
                )
            self._condition.notify_all()

    def _call_failed(self, exc: grpc.RpcError | ValueError, outgoing: Outgoing | None) -> None:
        error = map_call_error(exc, self.address, "session")
        if isinstance(error, PolicyError):
            if error.timestep is None and outgoing is not None:
                error.timestep = outgoing.timestep
            self._answered(error)
            return
        with self._condition:
            if isinstance(error, TransportTimeout) and outgoing is not None:
                self._pending.drop(outgoing)  # The base class keeps the deadline of an answer, and has said so.
            elif isinstance(error, (PeerGoneError, TransportClosed)):
                self._why_lost = str(error)
                self._lost += not self._disconnected
            elif isinstance(error, ProtocolError):
                self._over = self._over or error
            self._condition.notify_all()

    # A server that is lost.

    def _on_disconnect(self) -> None:
        with self._condition:
            self._lost += 1
            self._condition.notify_all()

    def _reconnect(self) -> None:
        """Reach the server again and set it up, as often as it goes away meanwhile; nothing is sent until then."""
        deadline_s = time.monotonic() + self.options.reconnect_timeout_s
        while not self._finished():
            try:
                lost = self._try_again(deadline_s)
            except PeerUnreachableError as exc:
                self._end(self._gave_up(f"did not come back within {self.options.reconnect_timeout_s:g} s", exc))
            except PeerGoneError:
                continue  # It went away again while loading: the deadline bounds this.
            except ProtocolError as exc:
                self._end(exc)
            except TransportError as exc:
                self._end(self._gave_up(f"came back without this session: {exc}", exc))
            else:
                if self._restart(lost):
                    return

    def _try_again(self, deadline_s: float) -> int:
        """Set the server up; returns the number of losses before that."""
        assert self._calls is not None
        assert self._setup is not None
        self._setup.reach(deadline_s)
        with self._condition:
            lost = self._lost
        self._set_up(self._calls, self._setup)
        return lost

    def _set_up(self, calls: PolicyServerCalls, setup: SessionSetup) -> str | None:
        description = setup.set_up()
        self._is_ours = description is not None
        if not self._is_ours:
            self._check_spoken()
            calls.watch()
        return description

    def _check_spoken(self) -> None:
        """LeRobot's own server would give a policy the environment's state as more of the robot's."""
        assert self._spec is not None
        features = self._spec.features
        if features.robot_dim < features.state_dim:
            raise SetupRefusedError(
                f"the policy server at {self.address} is LeRobot's own, which cannot give a policy "
                "observation.environment_state: serve with async-delta-serve"
            )

    def _restart(self, lost: int) -> bool:
        """Go on with the server that was set up; False when that is lost, too."""
        with self._condition:
            if self._lost != lost:
                return False
            self._losses_without_answer += self._pending.restart()
            if self._losses_without_answer >= _MOST_LOSSES:
                self._end(
                    self._gave_up(f"was lost {_MOST_LOSSES} times in a row with an observation that it had to answer")
                )
                return False
            self._owner.restart_deadline()
            self._restored = lost
            self._condition.notify_all()
            return True

    def _gave_up(self, why: str, cause: Exception | None = None) -> PeerUnreachableError:
        error = PeerUnreachableError(f"{self._why_lost}; the server {why}")
        error.__cause__ = cause
        return error

    def _end(self, error: PeerGoneError | ProtocolError) -> None:
        with self._condition:
            self._over = self._over or error
            self._condition.notify_all()
