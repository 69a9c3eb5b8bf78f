"""PolicyServer's four calls, each with a deadline, and the one place where gRPC's errors become ours."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any, Literal

import grpc

from async_delta_inference.errors import (
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.grpc import extras, lerobot_service
from async_delta_inference.transport.grpc.client.link import Line

__all__ = ["CALL_ERRORS", "PolicyServerCalls", "map_call_error"]

CALL_ERRORS = (grpc.RpcError, ValueError)
"""What a call may raise; the second is gRPC's word for one on a closed channel."""

_GOODBYE_TIMEOUT_S = 1.0


class PolicyServerCalls:
    """LeRobot's calls to one server.

    Args:
        line: To it.
        options: Deadlines.
        on_disconnect: See `watch`.
    """

    def __init__(self, line: Line, options: TransportOptions, on_disconnect: Callable[[], None]) -> None:
        self.address = line.address
        self._options = options
        self._on_disconnect = on_disconnect
        self._watched = self._connected = False
        self._metadata = [(extras.SESSION, token_hex(16)), *line.metadata]
        self._channel = line.channel
        self._ready = self._call("Ready", lerobot_service.Empty)
        self._set_up = self._call("SendPolicyInstructions", lerobot_service.Empty)
        self._get = self._call("GetActions", lerobot_service.Actions)
        self._send: Any = self._channel.stream_unary(
            f"/{lerobot_service.SERVICE}/SendObservations", _serialize, lerobot_service.Empty.FromString
        )

    def _call(self, name: str, reply: Any) -> Any:
        return self._channel.unary_unary(f"/{lerobot_service.SERVICE}/{name}", _serialize, reply.FromString)

    def ready(self, timeout_s: float) -> None:
        """``Ready``: waits for the server to be there.

        Raises:
            grpc.RpcError: See `map_call_error`.
        """
        self._ready(lerobot_service.Empty(), timeout=timeout_s, wait_for_ready=True, metadata=self._metadata)

    def set_up_policy(self, data: bytes, action_dim: int) -> str | None:
        """``SendPolicyInstructions``: returns when the policy is loaded.

        Returns:
            What the server says that it serves; None from LeRobot's server, which says nothing.

        Raises:
            grpc.RpcError: See `map_call_error`.
        """
        _, call = self._set_up.with_call(
            lerobot_service.PolicySetup(data=data),
            timeout=self._options.setup_timeout_s,
            metadata=[*self._metadata, (extras.ACTION_DIM, str(action_dim))],
        )
        return extras.read_text(call.trailing_metadata(), extras.SERVES)

    def send_observation(self, data: bytes, episode: int) -> None:
        """``SendObservations``: returns when the server has it.

        Raises:
            grpc.RpcError: See `map_call_error`.
        """
        chunks = lerobot_service.in_pieces(data)
        metadata = [*self._metadata, (extras.EPISODE, str(episode))]
        self._send(chunks, timeout=self._options.inference_timeout_s, metadata=metadata)

    def get_actions(self) -> tuple[bytes, int | None]:
        """``GetActions``: waits longer than any answer may take, so that one that is late is not lost.

        Returns:
            The reply's bytes, empty when the server had nothing, or PolicyServer's inference failed; and the timestep
            of the observation that a server of ours chose not to answer.

        Raises:
            grpc.RpcError: See `map_call_error`.
        """
        timeout_s = self._options.inference_timeout_s + extras.PATIENCE_S
        reply, call = self._get.with_call(lerobot_service.Empty(), timeout=timeout_s, metadata=self._metadata)
        return bytes(reply.data), extras.read_count(call.trailing_metadata(), extras.TIMESTEP)

    def say_goodbye(self) -> None:
        """Give the seat back. Of a server of ours only: PolicyServer would forget its other clients' observations.

        Raises:
            grpc.RpcError: It is not there any more.
        """
        self._ready(lerobot_service.Empty(), timeout=_GOODBYE_TIMEOUT_S, metadata=self._metadata)

    def watch(self) -> None:
        """Call ``on_disconnect`` from a thread of gRPC's, which polls, whenever the connection is lost. Idempotent.

        For a server that has no call under way; a call tells it by itself.
        """
        if not self._watched:
            self._watched = self._connected = True
            self._channel.subscribe(self._on_connectivity)

    def close(self) -> None:
        """Watch no longer."""
        if self._watched:
            self._channel.unsubscribe(self._on_connectivity)

    def _on_connectivity(self, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            self._connected = True
        elif self._connected and state is not grpc.ChannelConnectivity.CONNECTING:
            self._connected = False
            self._on_disconnect()


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def map_call_error(
    exc: grpc.RpcError | ValueError, address: str, during: Literal["setup", "session"]
) -> TransportError:
    """Our error for gRPC's; the only place that knows its status codes.

    Args:
        exc: What a call raised.
        address: Of the server, for the message.
        during: What the server was asked for.
    """
    if not isinstance(exc, grpc.RpcError):
        return TransportClosed(f"the channel to {address} is closed: {exc}")
    call: Any = exc  # gRPC raises objects that are both an RpcError and a Call, which no annotation of its says
    code, details = call.code(), (call.details() or "").strip()
    if code is grpc.StatusCode.UNAVAILABLE:
        return PeerGoneError(f"the policy server at {address} went away: {details}")
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return PeerGoneError(f"the policy server at {address} knows nothing of this session: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransportTimeout(f"the policy server at {address} did not answer in time")
    if code is grpc.StatusCode.CANCELLED:
        return TransportClosed(f"the call to {address} was cancelled")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolError(f"the server at {address} is not a PolicyServer: {details}")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return SetupRefusedError(f"the policy server at {address} refused this client: {details}")
    if code is grpc.StatusCode.UNKNOWN and details.startswith(extras.APPLICATION_ERROR):
        reason = details.removeprefix(extras.APPLICATION_ERROR)
        if during == "setup":
            return SetupRefusedError(f"the policy server at {address} refused the policy: {reason}")
        timestep = extras.read_count(call.trailing_metadata(), extras.TIMESTEP)
        return PolicyError(f"the policy server at {address} failed: {reason}", timestep)
    return ProtocolError(f"the policy server at {address} answered {code.name}: {details}")
