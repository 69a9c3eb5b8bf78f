"""LeRobot's own protocol: gRPC to an unmodified ``lerobot.async_inference.policy_server``."""

from async_delta_inference.transport.grpc.transport import GrpcTransport

__all__ = ["GrpcTransport"]
