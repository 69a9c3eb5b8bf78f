"""`Link`: one dialect's conversation with a server, and what all of them need."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from async_delta_inference.errors import ConfigError, PolicyError
from async_delta_inference.transport.action_prefix import NO_PREFIX
from async_delta_inference.transport.addresses import is_loopback
from async_delta_inference.transport.computation import Computation
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.grpc import extras
from async_delta_inference.transport.mailbox import Filtered, Reply
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec

__all__ = ["Link", "Line", "Owner", "open_line"]

MAX_REPLY_BYTES = 256 * 1024 * 1024
"""A chunk that PolicyServer pickles grows with the square of its length: gRPC's default of 4 MB holds 350 rows of 7."""


@dataclass(frozen=True)
class Owner:
    """What a link may ask of the transport that it belongs to.

    Args:
        options: Deadlines, among others.
        closed: Set when nobody wants the link any more.
        note_answer: Tell that an observation was answered with something that is no chunk.
        restart_deadline: Tell that the server came back.
    """

    options: TransportOptions
    closed: threading.Event
    note_answer: Callable[[int], None]
    restart_deadline: Callable[[], None]


@dataclass(frozen=True)
class Line:
    """A channel to a server.

    Args:
        address: ``host:port``, or ``unix:/path``.
        channel: gRPC's.
        metadata: Goes with every call.
    """

    address: str
    channel: grpc.Channel
    metadata: tuple[tuple[str, str], ...] = ()


class Link(ABC):
    """One session in one dialect. Threads and rules are `Transport`'s, whose hooks these are.

    Args:
        owner: The transport that it belongs to.
    """

    dialect: str
    """Its name, as in ``--grpc.dialect``."""

    n_obs_steps = 1
    """Observations that the policy looks at, once connected."""

    prefix = NO_PREFIX
    """How many of the robot's own actions it wants to be told of, once connected."""

    computation: Computation = {}  # noqa: RUF012 - never written to
    """How it computes, once connected; empty where the protocol has no word for it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    @abstractmethod
    def connect(self, spec: SessionSpec) -> str:
        """See `Transport._connect`."""

    @abstractmethod
    def send(self, observation: Observation) -> None:
        """See `Transport._send`."""

    def receive(self, timeout_s: float) -> ActionChunk | None:
        """See `Transport._receive`."""
        until_s = time.monotonic() + timeout_s
        while True:
            reply = self.next_reply(timeout_s)
            if isinstance(reply, PolicyError):
                raise reply
            if not isinstance(reply, Filtered):
                return reply
            self._owner.note_answer(reply.timestep)
            timeout_s = until_s - time.monotonic()

    @abstractmethod
    def next_reply(self, timeout_s: float) -> Reply | None:
        """What came next, whatever it is; None when nothing came in time, or nobody wants it any more."""

    @abstractmethod
    def close(self) -> None:
        """See `Transport._close`; the channel is closed afterwards."""

    @abstractmethod
    def expects_answers(self) -> bool:
        """See `Transport._expects_answers`."""


def open_line(address: str, options: TransportOptions) -> Line:
    """A channel, which connects when it is used.

    Raises:
        ConfigError: A certificate or the token cannot be read.
    """
    link = options.link
    channel_options = [
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # Reconnecting means setting up the policy again, so it is ours to do: no silent retries.
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.client_idle_timeout_ms", 2**31 - 1),
        ("grpc.use_local_subchannel_pool", 1),
        # An http_proxy of the environment's would be asked to connect to itself.
        ("grpc.enable_http_proxy", int(not is_loopback(address))),
    ]
    token = link.grpc.token()
    metadata = () if token is None else ((extras.TOKEN, token),)
    if not link.tls.is_used:
        return Line(address, grpc.insecure_channel(address, channel_options), metadata)
    try:
        credentials = grpc.ssl_channel_credentials(link.tls.read("ca"), link.tls.read("key"), link.tls.read("cert"))
        return Line(address, grpc.secure_channel(address, credentials, channel_options), metadata)
    except ValueError as exc:
        raise ConfigError(f"the certificates of --tls cannot be used: {exc}") from exc
