"""What our own client and server tell each other beside LeRobot's messages, as metadata of its calls.

Everything here may be absent: RobotClient and PolicyServer know nothing of it, and ignore it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ACTION_DIM",
    "APPLICATION_ERROR",
    "EPISODE",
    "PATIENCE_S",
    "SERVES",
    "SESSION",
    "TIMESTEP",
    "TOKEN",
    "shortened",
    "read_count",
    "read_session",
    "read_text",
]

SESSION = "async-delta-session"
"""With every call: the client's random id, by which clients on one Unix socket are told apart. Who sends it waits
longer in ``GetActions`` than RobotClient."""

ACTION_DIM = "async-delta-action-dim"
"""With ``SendPolicyInstructions``: length of an action."""

EPISODE = "async-delta-episode"
"""With ``SendObservations``: the observation's episode."""

SERVES = "async-delta-serves-bin"
"""Back from ``SendPolicyInstructions``: what the server says that it serves, in UTF-8."""

TIMESTEP = "async-delta-timestep"
"""Back from a ``GetActions`` that failed or is empty: of the observation that the policy failed on, or passed over."""

TOKEN = "async-delta-token"
"""With every call, where the two sides share one."""

PATIENCE_S = 60.0
"""How long a ``GetActions`` of our own client's may wait at our own server's before it is empty."""

APPLICATION_ERROR = "Exception calling application: "
"""What gRPC for Python writes before the text of an exception of the server's."""

MAX_TEXT_BYTES = 1000
"""The longest text in a header: all headers together are bounded by 8 KB, and a byte that is not ASCII takes three."""

Metadata = Iterable[tuple[str, Any]] | None
_SESSION_ID = re.compile(r"[0-9a-f]{32}")


def shortened(text: str) -> str:
    """The text, or as much of it as a header takes."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= MAX_TEXT_BYTES else data[:MAX_TEXT_BYTES].decode("utf-8", "ignore") + " ..."


def read_count(metadata: Metadata, key: str) -> int | None:
    """A count below 2**63; None where there is none."""
    value = _find(metadata, key)
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19 else None


def read_session(metadata: Metadata) -> str | None:
    """The client's id; None for a client of LeRobot's."""
    value = _find(metadata, SESSION)
    return value if isinstance(value, str) and _SESSION_ID.fullmatch(value) else None


def read_text(metadata: Metadata, key: str) -> str | None:
    """A text of at most `MAX_TEXT_BYTES`; None where there is none."""
    value = _find(metadata, key)
    return value[:MAX_TEXT_BYTES].decode("utf-8", "replace") if isinstance(value, bytes) else None


def _find(metadata: Metadata, key: str) -> Any:
    return next((value for name, value in metadata or () if name == key), None)
