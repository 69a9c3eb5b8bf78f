"""LeRobot's ``AsyncInference`` service as it is on the wire: its four calls and their messages.

Described anew from LeRobot's ``services.proto``, since importing its generated code loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from async_delta_inference.transport.grpc.protobuf import make_messages

__all__ = [
    "SERVICE",
    "TRANSFER_BEGIN",
    "TRANSFER_END",
    "TRANSFER_MIDDLE",
    "Actions",
    "Empty",
    "Observation",
    "PolicySetup",
    "in_pieces",
]

SERVICE = "transport.AsyncInference"

TRANSFER_BEGIN, TRANSFER_MIDDLE, TRANSFER_END = 1, 2, 3

PIECE_BYTES = 2 << 20
"""LeRobot's."""

_messages = make_messages(
    "transport",
    {
        # LeRobot's state is an enum; on the wire that is an int32.
        "Observation": {"transfer_state": (1, "int32"), "data": (2, "bytes")},
        "Actions": {"data": (1, "bytes")},
        "PolicySetup": {"data": (1, "bytes")},
        "Empty": {},
    },
)
Observation: Any = _messages["Observation"]
Actions: Any = _messages["Actions"]
PolicySetup: Any = _messages["PolicySetup"]
Empty: Any = _messages["Empty"]


def in_pieces(data: bytes) -> Iterator[Any]:
    """An observation's bytes as the messages of ``SendObservations``, cut where LeRobot's own sender cuts them."""
    for start in range(0, len(data), PIECE_BYTES):
        is_last = start + PIECE_BYTES >= len(data)
        state = TRANSFER_END if is_last else TRANSFER_BEGIN if start == 0 else TRANSFER_MIDDLE
        yield Observation(transfer_state=state, data=data[start : start + PIECE_BYTES])
