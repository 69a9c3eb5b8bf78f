"""``grpc://host:port``: our own protocol and LeRobot's, both halves of each, on one port.

The client's half talks to an unmodified ``lerobot.async_inference.policy_server`` as well as to our server's half, and
that serves an unmodified ``RobotClient`` as well as our client's half.
"""

from async_delta_inference.transport.grpc.client.transport import GrpcTransport
from async_delta_inference.transport.grpc.server.listener import GrpcListener
from async_delta_inference.transport.registry import Backend

__all__ = ["BACKEND", "GrpcListener", "GrpcTransport"]

BACKEND = Backend(transport=GrpcTransport, listener=GrpcListener)
