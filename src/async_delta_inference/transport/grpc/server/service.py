"""LeRobot's ``AsyncInference`` service over a `SessionHost`: what its four calls do.

Sessions are told apart by their connection, or by the id that our own client sends with every call. RobotClients that
share a connection cannot be told apart and share one session: those of one process, whose connections gRPC pools, and
those on one Unix socket, which gRPC gives one name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc

from async_delta_inference.errors import (
    InvalidMessageError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
)
from async_delta_inference.transport.grpc import extras, lerobot_service
from async_delta_inference.transport.grpc.server.connections import TcpConnections
from async_delta_inference.transport.grpc.server.session import MAX_CALLS, GrpcSession, SessionTable
from async_delta_inference.transport.grpc.server.silences import Silences
from async_delta_inference.transport.grpc.wire import Wanted, decode_observation, decode_policy, encode_actions
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.messages import ActionChunk, SessionSpec
from async_delta_inference.transport.policy import PolicyNeeds

__all__ = ["PolicyService"]

OBS_QUEUE_TIMEOUT_S = 2.0
"""How long RobotClient's ``GetActions`` waits when nothing is owed: PolicyServer's default."""

_OPEN_SLICE_S = 10.0
_SMALLEST_PIECE_BYTES = 1 << 10
"""Bounds how many pieces an observation may have; LeRobot cuts it at 2 MB."""

_DEADLINE_SLACK_S = 0.5
"""A client gives up at its own deadline, which the server counts from a little later."""


class PolicyService:
    """The four calls. Each runs in a thread of gRPC's, and may wait there.

    Args:
        host: Where the sessions go.
        connections: To the listener's port.
        silences: Bounds how long a call may take to say what it wants.
    """

    def __init__(self, host: SessionHost, connections: TcpConnections, silences: Silences) -> None:
        self._host = host
        self._connections = connections
        self._silences = silences
        self._sessions = SessionTable()

    def handler(self) -> grpc.GenericRpcHandler:
        """The four calls as gRPC takes them. To the wire, a call with one message is a stream of one."""
        messages = lerobot_service
        calls = {
            "Ready": (self.ready, messages.Empty),
            "SendPolicyInstructions": (self.send_policy_instructions, messages.PolicySetup),
            "SendObservations": (self.send_observations, messages.Observation),
            "GetActions": (self.get_actions, messages.Empty),
        }
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(call, message.FromString, _serialize)
            for name, (call, message) in calls.items()
        }
        return grpc.method_handlers_generic_handler(messages.SERVICE, handlers)

    def end_all(self, reason: str) -> None:
        """End every session, so that no call waits any longer."""
        for session in self._sessions.all():
            session.end(reason)

    def ready(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """A client is there, or says goodbye: its last session is over, and nobody else's."""
        self._read(requests, context)
        self._forget(context)
        return lerobot_service.Empty()

    def send_policy_instructions(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Begin a session; returns when the policy is loaded."""
        request = self._read(requests, context)
        self._forget(context)
        try:
            needs = self._begin(request.data, context)
        except (SetupRefusedError, ProtocolError, InvalidMessageError) as exc:
            _abort(context, grpc.StatusCode.UNKNOWN, f"{extras.APPLICATION_ERROR}{extras.shortened(str(exc))}")
        except PeerGoneError as exc:
            _abort(context, grpc.StatusCode.UNAVAILABLE, extras.shortened(str(exc)))
        context.set_trailing_metadata(((extras.SERVES, extras.shortened(needs.description).encode()),))
        return lerobot_service.Empty()

    def send_observations(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Take an observation, which comes in pieces."""
        with self._call(context) as session:
            if session.end_reason is not None:
                reason = f"the server ended the session: {session.end_reason}"
                _abort(context, grpc.StatusCode.UNAVAILABLE, extras.shortened(reason))
            try:
                with self._silences.bounded(context):
                    data = _join(requests, session.most_bytes)
                observation = decode_observation(data, session.spec.features)
            except ProtocolError as exc:
                _abort(context, grpc.StatusCode.INVALID_ARGUMENT, extras.shortened(str(exc)))
            observation.episode = extras.read_count(context.invocation_metadata(), extras.EPISODE) or 0
            session.post(observation)
        return lerobot_service.Empty()

    def get_actions(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Wait for the next chunk; empty when nothing is owed for a while, or the policy chose not to answer."""
        self._read(requests, context)
        with self._call(context) as session:
            try:
                reply = session.wait_for_reply(_patience_s(context), context.is_active)
            except PeerGoneError as exc:
                _abort(context, grpc.StatusCode.UNAVAILABLE, extras.shortened(str(exc)))
            if isinstance(reply, ActionChunk):
                return lerobot_service.Actions(data=encode_actions(reply))
            if reply is not None:
                context.set_trailing_metadata(((extras.TIMESTEP, str(reply.timestep)),))
            if isinstance(reply, PolicyError):
                _abort(context, grpc.StatusCode.UNKNOWN, f"{extras.APPLICATION_ERROR}{extras.shortened(str(reply))}")
            return lerobot_service.Actions()

    # Sessions.

    def _begin(self, data: bytes, context: grpc.ServicerContext) -> PolicyNeeds:
        """Have a session opened, and wait until it is.

        Raises:
            SetupRefusedError, ProtocolError, InvalidMessageError: There is none, and why.
            PeerGoneError: The client has gone, or the server was stopped.
        """
        spec = self._spec_of(decode_policy(data), context)
        needs = self._host.describe(spec)
        session = GrpcSession(spec, self._host.ring, context.peer(), self._connections, is_ours=_is_ours(context))
        self._host.reserve(session, needs)
        self._sessions.put(_key_of(context), session)
        with self._watched(session, context):
            self._host.enter(session)
            try:
                return _wait_until_open(session, context)
            except SetupRefusedError:
                self._sessions.discard(session)
                raise

    def _spec_of(self, wanted: Wanted, context: grpc.ServicerContext) -> SessionSpec:
        """What a client asks for. LeRobot's protocol does not carry the length of an action."""
        action_dim = extras.read_count(context.invocation_metadata(), extras.ACTION_DIM)
        if action_dim is None:
            needs = self._host.needs_of(wanted.spec(action_dim=1))
            if needs.action_dim is None:
                raise SetupRefusedError(
                    f"LeRobot's protocol does not say how many numbers an action of the robot's has, and the policy "
                    f"{needs.description} does not say it either: have its describe() give PolicyNeeds.action_dim"
                )
            action_dim = needs.action_dim
        return wanted.spec(action_dim)

    def _forget(self, context: grpc.ServicerContext) -> None:
        session = self._sessions.remove(_key_of(context))
        if session is not None:
            session.end("its client began anew")
            self._host.leave(session)

    def _leave(self, session: GrpcSession) -> None:
        self._sessions.discard(session)
        session.end("the connection to the client was lost")
        self._host.leave(session)

    # Calls.

    def _read(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The one message of a call."""
        with self._silences.bounded(context):
            request = next(requests, None)
        if request is None:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return request

    @contextmanager
    def _call(self, context: grpc.ServicerContext) -> Iterator[GrpcSession]:
        """The session that a call belongs to, for as long as it takes."""
        session = self._sessions.get(_key_of(context))
        if session is None:
            _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "this connection has no session: call Ready and SendPolicyInstructions first",
            )
        if not session.call_begins(context.peer()):
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"this client has {MAX_CALLS} calls under way already")
        try:
            with self._watched(session, context):
                yield session
        finally:
            session.call_ends()

    @contextmanager
    def _watched(self, session: GrpcSession, context: grpc.ServicerContext) -> Iterator[None]:
        """Ends the session when its client goes away while a call of it is under way."""
        under_way = True

        def terminated() -> None:
            session.wake()
            remaining_s = context.time_remaining()
            if under_way and (remaining_s is None or remaining_s > _DEADLINE_SLACK_S):
                self._leave(session)

        if not context.add_callback(terminated):
            terminated()
        try:
            yield
        finally:
            under_way = False


def _key_of(context: grpc.ServicerContext) -> str:
    """What tells a client apart from others."""
    session = extras.read_session(context.invocation_metadata())
    return context.peer() if session is None else f"session {session}"


def _wait_until_open(session: GrpcSession, context: grpc.ServicerContext) -> PolicyNeeds:
    while (needs := session.wait_until_open(_OPEN_SLICE_S)) is None:
        if not context.is_active():
            raise PeerGoneError("the client does not wait for its session any more")
    return needs


def _patience_s(context: grpc.ServicerContext) -> float:
    """Our own client always has a call under way, so that each side sees the other one go; RobotClient polls."""
    return extras.PATIENCE_S if _is_ours(context) else OBS_QUEUE_TIMEOUT_S


def _is_ours(context: grpc.ServicerContext) -> bool:
    return extras.read_session(context.invocation_metadata()) is not None


def _join(pieces: Iterable[Any], most_bytes: int) -> bytes:
    """The bytes that LeRobot's ``send_bytes_in_chunks`` cut into pieces.

    Raises:
        ProtocolError: They do not end, or are more than an observation has.
    """
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        if piece.transfer_state == lerobot_service.TRANSFER_BEGIN:
            parts.clear()
            size = 0
        parts.append(piece.data)
        size += len(piece.data)
        if size > most_bytes or len(parts) > most_bytes // _SMALLEST_PIECE_BYTES + 2:
            raise ProtocolError(f"the client sent more than the {most_bytes} bytes that an observation has")
        if piece.transfer_state == lerobot_service.TRANSFER_END:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise ProtocolError("the client sent an observation that does not end")


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    """End a call. It raises, in annotations as well as in fact."""
    context.abort(code, details)
    raise AssertionError("abort raises")
