"""Backends by URI scheme: a literal table for ours, entry points for everyone else's.

A package adds a backend with an entry point in the group ``async_delta_inference.transports`` whose name is the scheme
and whose object is a `Backend`: both halves of the transport.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from async_delta_inference.errors import ConfigError, MissingExtraError
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.link_options import LinkOptions
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.policy import Policy, PolicyFunction
from async_delta_inference.transport.server import Listener, Server, serve

__all__ = [
    "ENTRY_POINT_GROUP",
    "Backend",
    "backend",
    "connect",
    "known_schemes",
    "listen",
    "make_listener",
    "open_transport",
    "split_uri",
]

ENTRY_POINT_GROUP = "async_delta_inference.transports"

_BUILTIN = {
    "grpc": "async_delta_inference.transport.grpc",
    "inproc": "async_delta_inference.transport.inproc",
    "shm": "async_delta_inference.transport.shm",
}
_EXTRA_OF_SCHEME = {"grpc": "grpc"}


@dataclass(frozen=True)
class Backend:
    """Both halves of a transport: nobody can add half of one.

    Args:
        transport: The client's half.
        listener: The server's half.
    """

    transport: type[Transport]
    listener: type[Listener]

    def __post_init__(self) -> None:
        """Refuse what is no half of a transport.

        Raises:
            ConfigError: The message names it.
        """
        halves: tuple[tuple[str, object, type], ...] = (
            ("transport", self.transport, Transport),
            ("listener", self.listener, Listener),
        )
        for name, half, base in halves:
            if not (isinstance(half, type) and issubclass(half, base)):
                raise ConfigError(f"Backend({name}=...) takes a subclass of {base.__name__}, got {half!r}")


def known_schemes() -> list[str]:
    """All schemes that there is a backend for, sorted."""
    return sorted({*_BUILTIN, *_plugins()})


def split_uri(uri: str) -> tuple[str, str]:
    """``scheme://address`` to (scheme, address).

    Raises:
        ConfigError: Not of that form.
    """
    scheme, separator, address = uri.partition("://")
    if not separator or not scheme or not address:
        raise ConfigError(
            f"{uri!r} is not a transport URI: write it as scheme://address, such as grpc://127.0.0.1:8080"
        )
    return scheme, address


def backend(scheme: str) -> Backend:
    """Both halves of a scheme's transport.

    Raises:
        ConfigError: Unknown scheme; the known ones are listed. Or a plugin that is not a `Backend`.
        MissingExtraError: The backend's packages are not installed.
    """
    if module := _BUILTIN.get(scheme):
        try:
            found = import_module(module).BACKEND
        except ModuleNotFoundError as exc:
            if scheme in _EXTRA_OF_SCHEME:
                raise MissingExtraError(_EXTRA_OF_SCHEME[scheme], f"the transport {scheme!r}") from exc
            raise
    elif plugin := _plugins().get(scheme):
        found = plugin.load()
    else:
        raise ConfigError(f"unknown transport {scheme!r}; known are: {', '.join(known_schemes())}")
    if not isinstance(found, Backend):
        raise ConfigError(
            f"the transport plugin for {scheme!r} is not a Backend(transport=..., listener=...): both halves are needed"
        )
    return found


def open_transport(uri: str, options: TransportOptions | None = None) -> Transport:
    """A transport for ``scheme://address``, not yet connected.

    Raises:
        ConfigError: Malformed URI or unknown scheme.
        MissingExtraError: The backend's packages are not installed.
    """
    scheme, address = split_uri(uri)
    return backend(scheme).transport(address, options)


def connect(uri: str, spec: SessionSpec, options: TransportOptions | None = None) -> Transport:
    """A session with the server at ``scheme://address``.

    Raises:
        ConfigError: Malformed URI or unknown scheme.
        MissingExtraError: The backend's packages are not installed.
        TransportError: As `Transport.connect` raises it.
    """
    transport = open_transport(uri, options)
    transport.connect(spec)
    return transport


def make_listener(uri: str, host: SessionHost, link: LinkOptions | None = None) -> Listener:
    """A listener for ``scheme://address``, not yet started.

    Raises:
        ConfigError: Malformed URI, unknown scheme, or an address that is none.
        MissingExtraError: The backend's packages are not installed.
    """
    scheme, address = split_uri(uri)
    listener = backend(scheme).listener(address, host)
    if link is not None:
        listener.link = link
    return listener


def listen(uri: str, policy_or_function: Policy | PolicyFunction) -> Server:
    """`serve` on one URI with its defaults: the counterpart of `connect`."""
    return serve(policy_or_function, uri)


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
