"""Host and port, as users write them."""

from __future__ import annotations

from async_delta_inference.errors import ConfigError

__all__ = ["check_host_and_port", "is_loopback"]

_LARGEST_PORT = 65535


def check_host_and_port(address: str, smallest_port: int) -> None:
    """Refuse what gRPC would take and make something else of: a port too many is another port, none is 443.

    Args:
        address: ``host:port``, or ``unix:/path``.
        smallest_port: 1 to connect to, 0 to listen on (any free port).

    Raises:
        ConfigError: No port, or one out of range.
    """
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not smallest_port <= int(port) <= _LARGEST_PORT:
        raise ConfigError(
            f"{address!r} is no address of a server: write host:port with a port from {smallest_port} to "
            f"{_LARGEST_PORT}, such as 127.0.0.1:8080, or unix:/path"
        )


def is_loopback(address: str) -> bool:
    """Whether an address that `check_host_and_port` accepts leads to this machine."""
    host = address.rpartition(":")[0].strip("[]")
    return address.startswith("unix:") or host in {"localhost", "::1"} or host.startswith("127.")
