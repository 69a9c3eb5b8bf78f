"""The contract over both dialects of gRPC: our own, and LeRobot's with what our two halves add to it."""

from __future__ import annotations

from async_delta_inference.transport import GrpcOptions, LinkOptions
from async_delta_inference.transport.testing import TransportContract


class TestNativeContract(TransportContract):
    scheme = "grpc"
    carries_history = True
    carries_prefix = True
    carries_delay = True
    carries_computation = True
    absent_uri = "grpc://127.0.0.1:1"


class TestLeRobotContract(TransportContract):
    # The client asks for our own dialect first, here as everywhere.
    scheme = "grpc"
    link = LinkOptions(GrpcOptions(dialect="lerobot"))
    absent_uri = "grpc://127.0.0.1:1"
