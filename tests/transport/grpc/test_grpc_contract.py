"""The contract over LeRobot's gRPC protocol, with what our two halves add to it."""

from __future__ import annotations

from async_delta_inference.transport.testing import TransportContract


class TestGrpcContract(TransportContract):
    scheme = "grpc"
    absent_uri = "grpc://127.0.0.1:1"
