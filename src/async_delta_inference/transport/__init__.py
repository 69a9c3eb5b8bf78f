"""What crosses the boundary between a simulator and a policy: both halves of every transport.

``connect(uri, spec)`` gives a client its session, ``serve(policy_or_function, uri)`` serves a policy to many. Importing
this needs numpy, msgpack and posix-ipc at the most; a backend is loaded when its scheme is used.
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
from async_delta_inference.transport.action_prefix import ActionPrefix, PrefixLimits
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.inbox import Inbox, ServedSession
from async_delta_inference.transport.link_options import GrpcOptions, LinkOptions, TlsOptions
from async_delta_inference.transport.messages import (
    ActionChunk,
    Observation,
    ObservationFeatures,
    PastObservation,
    SessionSpec,
)
from async_delta_inference.transport.policy import (
    Answer,
    EpisodeStart,
    FunctionPolicy,
    OverlappingPolicy,
    Policy,
    PolicyNeeds,
    PolicySession,
    Request,
    SharingSession,
    TellingPolicy,
)
from async_delta_inference.transport.policy_options import PolicyOptions
from async_delta_inference.transport.registry import Backend, connect, known_schemes, listen, open_transport
from async_delta_inference.transport.rtc_options import RtcOptions
from async_delta_inference.transport.server import Listener, Server, serve

__all__ = [
    "ActionChunk",
    "ActionPrefix",
    "Answer",
    "Backend",
    "Computation",
    "EpisodeStart",
    "FunctionPolicy",
    "GrpcOptions",
    "Inbox",
    "InvalidMessageError",
    "LinkOptions",
    "Listener",
    "LoanError",
    "Observation",
    "ObservationFeatures",
    "PastObservation",
    "PeerGoneError",
    "PeerUnreachableError",
    "OverlappingPolicy",
    "Policy",
    "PolicyError",
    "PolicyNeeds",
    "PolicyOptions",
    "RtcOptions",
    "PolicySession",
    "PrefixLimits",
    "ProtocolError",
    "Request",
    "SharingSession",
    "TellingPolicy",
    "Server",
    "ServedSession",
    "SessionHost",
    "SessionSpec",
    "SetupRefusedError",
    "TlsOptions",
    "Transport",
    "TransportClosed",
    "TransportError",
    "TransportOptions",
    "TransportTimeout",
    "connect",
    "known_schemes",
    "listen",
    "open_transport",
    "serve",
]
