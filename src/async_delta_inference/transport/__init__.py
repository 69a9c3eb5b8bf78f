"""What crosses the process boundary between a simulator and a policy server.

Importing this needs numpy, msgpack and posix-ipc at the most; a backend is loaded when its scheme is used.
"""

from async_delta_inference.errors import (
    InvalidMessageError,
    LoanError,
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.client import Transport, TransportOptions
from async_delta_inference.transport.messages import ActionChunk, Observation, ObservationFeatures, SessionSpec
from async_delta_inference.transport.registry import known_schemes, open_transport

__all__ = [
    "ActionChunk",
    "InvalidMessageError",
    "LoanError",
    "Observation",
    "ObservationFeatures",
    "PeerGoneError",
    "PeerUnreachableError",
    "PolicyError",
    "SessionSpec",
    "ProtocolError",
    "SetupRefusedError",
    "Transport",
    "TransportClosed",
    "TransportError",
    "TransportOptions",
    "TransportTimeout",
    "known_schemes",
    "open_transport",
]
