"""Reads a message of the handshake field by field: the type and the size of everything a peer says is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from async_delta_inference.errors import ProtocolError

__all__ = ["Fields"]


class Fields:
    """The fields of one message; whatever is not as asked for is a `ProtocolError`.

    Args:
        message: As decoded.
        kind: What it must call itself.
        names: Its other fields, all of them.
    """

    def __init__(self, message: Mapping[str, Any], kind: str, names: set[str]) -> None:
        if message.get("kind") != kind:
            raise ProtocolError(f"expected the message {kind!r}, got {str(message.get('kind'))[:80]!r}")
        if message.keys() != names | {"kind"}:
            raise ProtocolError(f"{kind} has the fields {sorted(message)[:20]}, expected {sorted(names)}"[:1000])
        self._message = message
        self._kind = kind

    def text(self, name: str, max_length: int) -> str:
        """A text of at most ``max_length`` characters."""
        return self.text_of(name, self._message[name], max_length)

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return self.integer_of(name, self._message[name], low, high)

    def items(self, name: str, length: int | None = None) -> list[Any]:
        """A list, of ``length`` if given."""
        return self.items_of(name, self._message[name], length)

    def text_of(self, name: str, value: object, max_length: int) -> str:
        """The same for a value inside a list; ``name`` is for the error."""
        if not isinstance(value, str) or len(value) > max_length:
            raise self._wrong(name, value, f"a text of at most {max_length} characters")
        return value

    def integer_of(self, name: str, value: object, low: int, high: int) -> int:
        """The same for a value inside a list."""
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, value, f"an integer in [{low}, {high}]")
        return value

    def items_of(self, name: str, value: object, length: int | None = None) -> list[Any]:
        """The same for a value inside a list."""
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise self._wrong(name, value, "a list" if length is None else f"a list of {length}")
        return value

    def _wrong(self, name: str, value: object, wanted: str) -> ProtocolError:
        return ProtocolError(f"{self._kind}: {name} must be {wanted}, got {str(value)[:80]!r}")
