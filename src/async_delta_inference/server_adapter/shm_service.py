"""Hosts a PolicyServer behind shared memory."""

from __future__ import annotations

from async_delta_inference.server_adapter.policy_host import PolicyHost
from async_delta_inference.transport.shm.endpoint import ShmEndpoint

__all__ = ["ShmService"]


class ShmService:
    """A shared-memory endpoint whose observations a `PolicyHost` answers.

    It has a PolicyServer of its own: one that is also served over gRPC would be reset by every client there.

    Args:
        host: Answers; used by this service alone.
        address: The name in ``shm://name``.

    Raises:
        ConfigError: Not a name, or the folder of the sockets cannot be used.
    """

    def __init__(self, host: PolicyHost, address: str) -> None:
        self._endpoint = ShmEndpoint(address, host)
        self.uri = self._endpoint.uri

    def start(self) -> None:
        """Begin to serve, in threads of its own.

        Raises:
            ConfigError: A live server has the name, or the socket cannot be made.
        """
        self._endpoint.start()

    def stop(self) -> None:
        """End the session, stop serving and leave nothing behind; idempotent."""
        self._endpoint.stop()

    def pending_timestep(self) -> int | None:
        """Timestep of the observation that waits for inference, or None; for diagnosis."""
        return self._endpoint.pending_timestep()
