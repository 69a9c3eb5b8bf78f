"""Backends by URI scheme: a literal table for ours, entry points for everyone else's.

A package adds a backend with an entry point in the group ``async_delta_inference.transports`` whose name is the scheme
and whose object is a `Transport` subclass.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from async_delta_inference.errors import ConfigError, MissingExtraError
from async_delta_inference.transport.client import Transport, TransportOptions

__all__ = ["ENTRY_POINT_GROUP", "known_schemes", "open_transport", "split_uri", "transport_class"]

ENTRY_POINT_GROUP = "async_delta_inference.transports"

_BUILTIN = {
    "grpc": "async_delta_inference.transport.grpc:GrpcTransport",
    "shm": "async_delta_inference.transport.shm:ShmTransport",
}
_EXTRA_OF_SCHEME = {"grpc": "lerobot"}


def known_schemes() -> list[str]:
    """All schemes that `open_transport` takes, sorted."""
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


def transport_class(scheme: str) -> type[Transport]:
    """The backend of a scheme.

    Raises:
        ConfigError: Unknown scheme; the known ones are listed. Or a plugin that is not a `Transport`.
        MissingExtraError: The backend's packages are not installed.
    """
    if target := _BUILTIN.get(scheme):
        module, _, name = target.partition(":")
        try:
            backend = getattr(import_module(module), name)
        except ModuleNotFoundError as exc:
            if scheme in _EXTRA_OF_SCHEME:
                raise MissingExtraError(_EXTRA_OF_SCHEME[scheme], f"the transport {scheme!r}") from exc
            raise
    elif plugin := _plugins().get(scheme):
        backend = plugin.load()
    else:
        raise ConfigError(f"unknown transport {scheme!r}; known are: {', '.join(known_schemes())}")
    if not (isinstance(backend, type) and issubclass(backend, Transport)):
        raise ConfigError(f"the transport plugin for {scheme!r} is not a subclass of Transport")
    return backend


def open_transport(uri: str, options: TransportOptions | None = None) -> Transport:
    """A transport for ``scheme://address``, not yet connected.

    Raises:
        ConfigError: Malformed URI or unknown scheme.
        MissingExtraError: The backend's packages are not installed.
    """
    scheme, address = split_uri(uri)
    return transport_class(scheme)(address, options)


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
