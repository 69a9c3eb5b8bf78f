"""PolicyServer's four calls, each with a deadline, and the one place where gRPC's errors become ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks

from async_delta_inference.errors import (
    PeerGoneError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.addresses import is_loopback
from async_delta_inference.transport.client import TransportOptions

__all__ = ["PolicyServerLink", "map_rpc_error"]

MAX_REPLY_BYTES = 256 * 1024 * 1024
"""A chunk pickled row by row grows with the square of its length: gRPC's default of 4 MB holds 350 rows of 7."""

_APPLICATION_ERROR = "Exception calling application: "


class PolicyServerLink:
    """A channel to one PolicyServer.

    Args:
        address: ``host:port``, or ``unix:/path``.
        options: Deadlines.
        on_disconnect: Called from a thread of gRPC's when an established connection was lost.
    """

    def __init__(self, address: str, options: TransportOptions, on_disconnect: Callable[[], None]) -> None:
        self.address = address
        self._options = options
        self._on_disconnect = on_disconnect
        self._connected = False
        self._channel = grpc.insecure_channel(
            address,
            [
                ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
                # Reconnecting means setting up the policy again, so it is ours to do: no silent retries.
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.client_idle_timeout_ms", 2**31 - 1),
                ("grpc.use_local_subchannel_pool", 1),
                # An http_proxy of the environment's would be asked to connect to itself.
                ("grpc.enable_http_proxy", int(not is_loopback(address))),
            ],
        )
        self._stub: Any = services_pb2_grpc.AsyncInferenceStub(self._channel)
        self._channel.subscribe(self._on_connectivity)

    def ready(self, timeout_s: float) -> None:
        """``Ready``: waits for the server to be there.

        Raises:
            grpc.RpcError: See `map_rpc_error`.
        """
        self._stub.Ready(services_pb2.Empty(), timeout=timeout_s, wait_for_ready=True)

    def set_up_policy(self, data: bytes) -> None:
        """``SendPolicyInstructions``: returns when the policy is loaded.

        Raises:
            grpc.RpcError: See `map_rpc_error`.
        """
        self._stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data), timeout=self._options.setup_timeout_s)

    def send_observation(self, data: bytes) -> None:
        """``SendObservations``: returns when the server has it.

        Raises:
            grpc.RpcError: See `map_rpc_error`.
        """
        chunks = send_bytes_in_chunks(data, services_pb2.Observation, silent=True)
        self._stub.SendObservations(chunks, timeout=self._options.inference_timeout_s)

    def get_actions(self) -> bytes:
        """``GetActions``: the reply's bytes, empty when the server had nothing or its inference failed.

        Raises:
            grpc.RpcError: See `map_rpc_error`.
        """
        reply = self._stub.GetActions(services_pb2.Empty(), timeout=self._options.inference_timeout_s)
        return bytes(reply.data)

    def close(self) -> None:
        """Cancel what is under way and close the channel."""
        self._channel.unsubscribe(self._on_connectivity)
        self._channel.close()

    def _on_connectivity(self, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            self._connected = True
        elif self._connected and state is not grpc.ChannelConnectivity.CONNECTING:
            self._connected = False
            self._on_disconnect()


def map_rpc_error(exc: grpc.RpcError, address: str, during: str) -> TransportError:
    """Our error for gRPC's; the only place that knows its status codes.

    Args:
        exc: What a call raised.
        address: Of the server, for the message.
        during: ``setup`` or ``exchange``.
    """
    call: Any = exc  # gRPC raises objects that are both an RpcError and a Call, which no annotation of its says
    code, details = call.code(), (call.details() or "").strip()
    if code is grpc.StatusCode.UNAVAILABLE:
        return PeerGoneError(f"the policy server at {address} went away: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransportTimeout(f"the policy server at {address} did not answer in time")
    if code is grpc.StatusCode.CANCELLED:
        return TransportClosed(f"the call to {address} was cancelled")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolError(f"the server at {address} is not a PolicyServer: {details}")
    if code is grpc.StatusCode.UNKNOWN and details.startswith(_APPLICATION_ERROR):
        reason = details.removeprefix(_APPLICATION_ERROR)
        if during == "setup":
            return SetupRefusedError(f"the policy server at {address} refused the policy: {reason}")
        return PolicyError(f"the policy server at {address} failed: {reason}")
    return ProtocolError(f"the policy server at {address} answered {code.name}: {details}")
