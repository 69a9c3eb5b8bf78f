"""Where RobotClient gets its channel from: ``grpc.insecure_channel``, looked up anew for each client."""

from __future__ import annotations

import functools
from typing import Any

import grpc

from async_delta_inference.robot_client.channel import TransportChannel
from async_delta_inference.transport.registry import known_schemes

__all__ = ["install"]

_MARK = "_async_delta_inference"


def install() -> None:
    """Have ``grpc.insecure_channel`` give a `TransportChannel` for the address ``scheme://...`` of a transport of ours.

    Every other address goes to gRPC, as before. To do it again changes nothing.
    """
    original: Any = grpc.insecure_channel
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def insecure_channel(target: str, *args: Any, **kwargs: Any) -> Any:
        return TransportChannel(target) if _is_ours(target) else original(target, *args, **kwargs)

    setattr(insecure_channel, _MARK, True)
    grpc.insecure_channel = insecure_channel


def _is_ours(target: str) -> bool:
    """Whether a transport of ours has the scheme: gRPC has addresses with ``://`` of its own."""
    scheme, separator, _ = target.partition("://")
    return bool(separator) and scheme != "grpc" and scheme in known_schemes()
