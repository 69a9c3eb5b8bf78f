"""``inproc://name``: client and server in one process, for tests, examples and debugging."""

from async_delta_inference.transport.inproc.listener import InprocListener
from async_delta_inference.transport.inproc.transport import InprocTransport
from async_delta_inference.transport.registry import Backend

__all__ = ["BACKEND", "InprocListener", "InprocTransport"]

BACKEND = Backend(transport=InprocTransport, listener=InprocListener)
