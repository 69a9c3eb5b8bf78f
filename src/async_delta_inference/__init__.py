"""Asynchronous policy evaluation in simulation for LeRobot's PolicyServer.

``SimClient`` and ``SimClientConfig`` load their module when first used, so that importing the transport stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from async_delta_inference.errors import AsyncDeltaError

if TYPE_CHECKING:
    from async_delta_inference.client import SimClient, SimClientConfig
    from async_delta_inference.transport import Transport

__version__ = "0.1.0"
__all__ = ["AsyncDeltaError", "SimClient", "SimClientConfig", "Transport", "__version__"]

_LAZY = {
    "SimClient": "async_delta_inference.client",
    "SimClientConfig": "async_delta_inference.client",
    "Transport": "async_delta_inference.transport",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
