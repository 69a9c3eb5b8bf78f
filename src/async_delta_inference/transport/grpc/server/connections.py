"""Which TCP connections are open, as the kernel says: LeRobot's protocol has no goodbye, and gRPC does not tell its
services who has gone.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

__all__ = ["TcpConnections"]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
_FRESH_S = 0.01
"""One look serves all sessions of a server that are asked about at once, and are there."""

Remote = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


class TcpConnections:
    """The open connections to one port of this machine.

    Args:
        port: The port.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._seen_s = 0.0
        self._remotes: frozenset[Remote] | None = None

    def is_open(self, peer: str) -> bool | None:
        """Whether a client's connection is open; None where that cannot be known, as of a Unix socket.

        Args:
            peer: As gRPC names it, such as ``ipv4:127.0.0.1:40312``.
        """
        remote = _parse_peer(peer)
        if remote is None:
            return None
        if self._remotes is None or time.monotonic() - self._seen_s > _FRESH_S or remote not in self._remotes:
            # What was not there a moment ago may have come since: nobody is given up for an old look.
            self._seen_s = time.monotonic()
            self._remotes = self._look()
        return None if self._remotes is None else remote in self._remotes

    def _look(self) -> frozenset[Remote] | None:
        try:
            tables = [path.read_text() for path in _TABLES if path.exists()]
        except OSError:
            return None
        return frozenset(remote for table in tables for remote in self._remotes_in(table)) if tables else None

    def _remotes_in(self, table: str) -> Iterator[Remote]:
        port = f":{self._port:04X}"
        for line in table.splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if state == _ESTABLISHED and local.endswith(port):
                address, _, remote_port = remote.rpartition(":")
                yield _parse_address(address), int(remote_port, 16)


def _parse_peer(peer: str) -> Remote | None:
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return _plain(ipaddress.ip_address(host.strip("[]").partition("%")[0])), int(port)


def _parse_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel writes it: words of 32 bits in the machine's order."""
    data = bytes.fromhex(address)
    if sys.byteorder == "little":
        data = b"".join(data[start : start + 4][::-1] for start in range(0, len(data), 4))
    return _plain(ipaddress.ip_address(data))


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address in IPv6's clothes as what it is."""
    return getattr(address, "ipv4_mapped", None) or address
