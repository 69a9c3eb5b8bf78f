"""The shared-memory transport: ``shm://name``. How it works and why is told in ``docs/design/shm.md``."""

from async_delta_inference.transport.registry import Backend
from async_delta_inference.transport.shm.client.transport import ShmTransport
from async_delta_inference.transport.shm.server.listener import ShmListener

__all__ = ["BACKEND", "ShmListener", "ShmTransport"]

BACKEND = Backend(transport=ShmTransport, listener=ShmListener)
