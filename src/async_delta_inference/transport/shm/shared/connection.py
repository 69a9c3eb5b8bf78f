"""The session's Unix socket: carries the handshake, one msgpack map a packet, and then serves as the sign of life."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Mapping
from typing import Any

import msgpack

from async_delta_inference.errors import InvalidMessageError, PeerGoneError, ProtocolError, TransportTimeout

__all__ = ["MAX_PACKET_BYTES", "Connection"]

MAX_PACKET_BYTES = 65536
_MAX_ITEMS = 8192
_CREDENTIALS = struct.Struct("@iII")


class Connection:
    """A SOCK_SEQPACKET socket to one peer: packets keep their bounds, and the end of file says that the peer is gone.

    Any thread may `shut_down`; one thread reads.

    Args:
        sock: Connected; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        _open_connections.add(self)

    def send(self, message: Mapping[str, object]) -> None:
        """Send one message. A peer that is gone or takes nothing is found out by the next `receive`.

        Raises:
            InvalidMessageError: The message is larger than a packet may be, or has text that UTF-8 cannot hold.
        """
        try:
            packet: bytes = msgpack.packb(message)
        except UnicodeEncodeError as exc:
            raise InvalidMessageError(f"the handshake has text that UTF-8 cannot hold: {exc}") from exc
        if len(packet) > MAX_PACKET_BYTES:
            raise InvalidMessageError(
                f"the handshake has {len(packet)} bytes, more than the limit of {MAX_PACKET_BYTES}: use shorter names"
            )
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except OSError:
            self.shut_down()

    def receive(self, timeout_s: float | None) -> dict[str, Any]:
        """The next message.

        Args:
            timeout_s: None waits for ever.

        Raises:
            PeerGoneError: The peer closed its end or died, or `shut_down` was called.
            TransportTimeout: Nothing came.
            ProtocolError: What came is not a msgpack map within the limits.
        """
        if not self._wait(timeout_s):
            raise TransportTimeout(f"the peer sent nothing for {timeout_s:g} s")
        try:
            packet, flags = self._read()
        except OSError as exc:
            raise PeerGoneError(f"the connection broke: {exc}") from exc
        if not packet:
            raise PeerGoneError("the peer closed the connection or died")
        if flags & socket.MSG_TRUNC:
            raise ProtocolError(f"the peer sent a packet of more than {MAX_PACKET_BYTES} bytes")
        return _decode(packet)

    def at_end(self) -> bool:
        """Whether the peer is known to be gone; does not wait."""
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLRDHUP)
        except (OSError, ValueError):
            return True
        return bool(poll.poll(0))

    def peer_uid(self) -> int:
        """The user that the peer ran as when it connected or listened, from the kernel."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        return int(uid)

    def shut_down(self) -> None:
        """End the connection for both sides and wake a `receive`, from any thread; idempotent."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # The peer was faster, or it is closed already.

    def close(self) -> None:
        """Give the descriptor back without a word to the peer; after `shut_down`, or in a forked child."""
        self._socket.close()

    def _read(self) -> tuple[bytes, int]:
        try:
            packet, _, flags, _ = self._socket.recvmsg(MAX_PACKET_BYTES)
        except ConnectionResetError:
            # The peer closed with something of ours unread. The system says so once, before what the peer said last.
            packet, _, flags, _ = self._socket.recvmsg(MAX_PACKET_BYTES)
        return packet, flags

    def _wait(self, timeout_s: float | None) -> bool:
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
        except (OSError, ValueError) as exc:
            raise PeerGoneError("the connection is closed") from exc
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if poll.poll(None if left_s is None else left_s * 1000):
                return True
            if left_s is not None and left_s <= 0:
                return False


def _decode(packet: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(
            packet,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_PACKET_BYTES,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise ProtocolError(f"the peer sent what is not msgpack: {type(exc).__name__}: {exc}") from exc
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ProtocolError(f"the peer sent a {type(message).__name__} instead of a map")
    return message


_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_all() -> None:
    """In a forked child: a socket that it kept open would hide the parent's death from the peer."""
    for connection in list(_open_connections):
        connection.close()


os.register_at_fork(after_in_child=_close_all)
