"""The shared-memory transport: ``shm://name``. How it works and why is told in ``docs/design/shm.md``."""

from async_delta_inference.transport.shm.transport import ShmTransport

__all__ = ["ShmTransport"]
