"""A contract peer on gRPC: lerobot's own PolicyServer with a scripted policy."""

from __future__ import annotations

from collections.abc import Callable

from scripted_policy import ScriptedPolicy


def serve_grpc(policy: ScriptedPolicy, address: str = "127.0.0.1:0") -> tuple[str, Callable[[], int | None], object]:
    from lerobot.async_inference import policy_server
    from lerobot.async_inference.configs import PolicyServerConfig

    from async_delta_inference.server_adapter.grpc_service import GrpcService

    policy.install(policy_server)
    server = policy_server.PolicyServer(PolicyServerConfig(inference_latency=0.0, obs_queue_timeout=0.3))
    service = GrpcService(server, address)
    service.start()

    def pending() -> int | None:
        queue = list(server.observation_queue.queue)
        return queue[0].get_timestep() if queue else None

    return service.uri, pending, service


def serve_policy_server(
    policy: ScriptedPolicy, address: str = "127.0.0.1:0"
) -> tuple[str, Callable[[], int | None], object]:
    """The unmodified server: the scripted policy is not installed, it loads the checkpoint that it is told."""
    from lerobot.async_inference import policy_server
    from lerobot.async_inference.configs import PolicyServerConfig

    from async_delta_inference.server_adapter.grpc_service import GrpcService

    server = policy_server.PolicyServer(PolicyServerConfig(inference_latency=0.0))
    service = GrpcService(server, address)
    service.start()
    return service.uri, lambda: None, service
