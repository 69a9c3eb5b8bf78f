"""`TransportChannel`: what RobotClient asks of a gRPC channel, over a transport of ours.

RobotClient pickles in this very process and unpickles here what it gets. What it pickled is read as inert data
(`transport.grpc.unpickling`); what it is given are the bytes that our gRPC server would send it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from async_delta_inference.errors import (
    PeerGoneError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
)
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.grpc import lerobot_service
from async_delta_inference.transport.grpc.wire import decode_observation, decode_policy, encode_actions
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.registry import open_transport

__all__ = ["CallError", "TransportChannel"]

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""How long ``GetActions`` waits when nothing comes: PolicyServer's default. RobotClient calls again at once."""


class CallError(grpc.RpcError):  # type: ignore[misc,unused-ignore]
    """What RobotClient catches; it logs the text, which is ours. What the transport raised is its cause."""


class TransportChannel:
    """The four calls of LeRobot's ``AsyncInference`` service over a session with a server of ours.

    RobotClient does not say how many numbers an action has: it is taken to have as many as the state, whose names are
    those of the action in LeRobot's robots. It has no episodes and sends one observation at a time. A server that went
    away is not waited for: ``RobotClient.start()`` begins anew.

    Args:
        uri: ``scheme://address`` of the server, such as ``shm://robot``.
        options: Deadlines.

    Raises:
        ConfigError: Malformed URI or unknown scheme.
    """

    def __init__(self, uri: str, options: TransportOptions | None = None) -> None:
        self._uri = uri
        self._options = options
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # Not connected before RobotClient says what it wants: this is what `Ready` can do without a policy.
        self._transport: Transport = open_transport(uri, options)
        self._spec: SessionSpec | None = None
        self._answered_timestep = -1
        self._calls: dict[str, Callable[[Any], bytes]] = {
            "Ready": self._ready,
            "SendPolicyInstructions": self._send_policy_instructions,
            "SendObservations": self._send_observations,
            "GetActions": self._get_actions,
        }

    # What RobotClient's stub asks for.

    def unary_unary(
        self, method: str, *, response_deserializer: Callable[[bytes], Any], **_: Any
    ) -> Callable[..., Any]:
        """One of the calls.

        Args:
            method: ``/transport.AsyncInference/NAME``.
            response_deserializer: Makes LeRobot's message of a reply's bytes.

        Returns:
            Takes LeRobot's request, returns LeRobot's reply, raises `CallError`.
        """
        call = self._calls[method.rpartition("/")[2]]

        def invoke(request: Any, timeout: float | None = None, **_: Any) -> Any:
            try:
                return response_deserializer(call(request))
            except TransportError as exc:
                raise CallError(str(exc)) from exc

        return invoke

    stream_unary = unary_unary

    def close(self) -> None:
        """End the session; idempotent, from any thread. A call that waits raises."""
        self._closed.set()
        with self._lock:
            transport = self._transport
        transport.close()

    # The four calls; each returns its reply's bytes. An empty message has none.

    def _ready(self, request: Any) -> bytes:
        return b""

    def _send_policy_instructions(self, request: Any) -> bytes:
        wanted = decode_policy(request.data)
        spec = wanted.spec(action_dim=max(1, wanted.features.state_dim))
        transport = self._renewed()
        transport.connect(spec)
        if transport.n_obs_steps > 1:
            transport.close()
            raise SetupRefusedError(
                f"the policy {transport.description} looks at {transport.n_obs_steps} successive observations at once, "
                "and LeRobot's RobotClient sends one: serve another policy to it"
            )
        if transport.prefix:
            transport.close()
            raise SetupRefusedError(
                f"the policy {transport.description} wants to be told of the robot's own actions, and LeRobot's "
                "RobotClient does not tell them: serve another policy to it"
            )
        self._answered_timestep = -1
        self._spec = spec
        logger.info("%s serves %s", self._uri, transport.description)
        return b""

    def _renewed(self) -> Transport:
        """A transport that was never connected, in the place of the last one."""
        with self._lock:
            if self._closed.is_set():
                raise TransportClosed("the channel is closed")
            last, self._transport = self._transport, open_transport(self._uri, self._options)
            transport = self._transport
        last.close()
        return transport

    def _send_observations(self, pieces: Iterable[Any]) -> bytes:
        data = b"".join(piece.data for piece in pieces)
        observation = decode_observation(data, self._agreed().features)
        # PolicyServer leaves out what it has answered, too.
        if observation.must_go or observation.timestep > self._answered_timestep:
            self._transport.send_observation(observation)
        return b""

    def _get_actions(self, request: Any) -> bytes:
        try:
            chunk = self._transport.receive_actions(PATIENCE_S)
        except (PeerGoneError, ProtocolError, TransportClosed):
            # The session is over. RobotClient asks again at once, for ever: not more often than it would wait.
            self._closed.wait(PATIENCE_S)
            raise
        if chunk is None:
            return b""
        self._answered_timestep = max(self._answered_timestep, chunk.timestep)
        data: bytes = lerobot_service.Actions(data=encode_actions(chunk)).SerializeToString()
        return data

    def _agreed(self) -> SessionSpec:
        if self._spec is None:
            raise TransportClosed("there is no session yet: RobotClient.start() begins one")
        return self._spec
