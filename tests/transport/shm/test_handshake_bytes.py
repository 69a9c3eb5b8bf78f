"""The handshake as a function of bytes: read, or refused by an error of the transport."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shm_actor import policy_spec
from shm_hostility import HELLO, LAYOUT

from async_delta_inference.errors import (
    PeerGoneError,
    ProtocolError,
    SetupRefusedError,
)
from async_delta_inference.transport.shm.shared import handshake
from async_delta_inference.transport.shm.shared.connection import _decode
from async_delta_inference.transport.shm.shared.handshake import Hello
from async_delta_inference.transport.shm.shared.layout import SegmentLayout

BOUNDED = settings(max_examples=150, deadline=None)

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@BOUNDED
@given(st.binary(max_size=400))
def test_random_packet_is_a_map_or_a_protocol_error(packet: bytes) -> None:
    try:
        message = _decode(packet)
    except ProtocolError:
        return
    assert isinstance(message, dict)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x91" * 2000 + b"\x90",  # lists in lists
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb({"kind": b"bytes"}),
        msgpack.packb({"kind": msgpack.ExtType(5, b"x")}),
        msgpack.packb({1: 2}),
        msgpack.packb([1, 2]),
        msgpack.packb({"kind": "hello"}) + b"\x00",
        b"\x81\xa4kind\xa2\xff\xfe",
    ],
)
def test_absurd_packet_is_a_protocol_error(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        _decode(packet)


def test_truncated_hello_is_a_protocol_error() -> None:
    packet = msgpack.packb(HELLO)
    for length in range(len(packet)):
        with pytest.raises(ProtocolError):
            _decode(packet[:length])


@BOUNDED
@given(st.dictionaries(st.sampled_from([*HELLO, "extra"]), anything, min_size=1, max_size=3), st.booleans())
def test_changed_hello_is_read_or_refused(changes: dict[str, Any], drop: bool) -> None:
    message = {**HELLO, **changes}
    if drop:
        message.pop(next(iter(changes)))
    try:
        hello = Hello.from_message(message)
    except (ProtocolError, SetupRefusedError):
        return
    SegmentLayout.of_session(hello.spec)


@BOUNDED
@given(st.dictionaries(st.sampled_from(["kind", *handshake.offer(LAYOUT), "extra"]), anything, max_size=3))
def test_changed_offer_is_read_or_refused(changes: dict[str, Any]) -> None:
    message = {**handshake.offer(LAYOUT), **changes}
    try:
        layout = handshake.read_offer(message, policy_spec())
    except (ProtocolError, SetupRefusedError):
        return
    assert layout.segment_bytes == message["segment_bytes"]


@BOUNDED
@given(anything, st.sampled_from(["refused", "bye", "ready", "attached", "offer"]))
def test_changed_reason_is_read_or_refused(reason: object, kind: str) -> None:
    for read in (handshake.reason_of, lambda message: handshake.check_kind(message, "ready")):
        try:
            read({"kind": kind, "reason": reason})  # type: ignore[operator]
        except PeerGoneError:
            assert kind == "bye"
        except (ProtocolError, SetupRefusedError):
            continue
