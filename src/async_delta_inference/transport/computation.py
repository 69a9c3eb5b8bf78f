"""How a policy computes, in its own words: names and plain values, which both halves of every transport check."""

from __future__ import annotations

import math
from collections.abc import Mapping

from async_delta_inference.errors import InvalidMessageError

__all__ = ["Computation", "checked_computation"]

Computation = Mapping[str, str | int | float | bool | None]
"""What a result may depend on besides the policy, such as its device and the type of its numbers; None: it has no such
thing. At most 64 names of 64 characters; texts of 256 characters, integers of 64 bits, finite floats."""

_MAX_ENTRIES = 64
_MAX_NAME = 64
_MAX_TEXT = 256
_INTEGER_BITS = 63


def checked_computation(said: object) -> dict[str, str | int | float | bool | None]:
    """A copy of what a policy or a peer says of it.

    Raises:
        InvalidMessageError: It is something else, or too much.
    """
    if not isinstance(said, Mapping) or len(said) > _MAX_ENTRIES:
        raise InvalidMessageError(f"how a policy computes must be a mapping of at most {_MAX_ENTRIES} names")
    for name, value in said.items():
        if not (_is_text(name, _MAX_NAME) and (value is None or _is_plain(value))):
            raise InvalidMessageError(f"how a policy computes: {str(name)[:80]!r} cannot be {str(value)[:80]!r}")
    return dict(said)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return _is_text(value, _MAX_TEXT)
    if type(value) is int:
        return value.bit_length() <= _INTEGER_BITS
    return type(value) is bool or (type(value) is float and math.isfinite(value))


def _is_text(value: object, most: int) -> bool:
    # The surrogates of a name that is no UTF-8 cannot be sent.
    return type(value) is str and len(value) <= most and not any("\ud800" <= letter <= "\udfff" for letter in value)
