"""The contract over LeRobot's gRPC protocol, which has no word for an episode, a description or an action's length."""

from __future__ import annotations

from async_delta_inference.transport.testing import TransportContract


class TestGrpcContract(TransportContract):
    scheme = "grpc"
    absent_uri = "grpc://127.0.0.1:1"
    carries_episodes = False
    carries_description = False
    carries_action_dim = False
