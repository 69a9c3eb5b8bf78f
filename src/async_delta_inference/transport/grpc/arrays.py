"""numpy arrays and scalars out of pickles, as views of the bytes, without letting numpy unpickle anything."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.grpc.unpickling import Made, Name

__all__ = ["ARRAY_NAMES", "read_array", "read_number"]

# numpy 1 and 2 name their inner modules differently, and each writes another form for pickle protocols 4 and 5.
_RECONSTRUCT = {Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_FROM_BUFFER = {Name(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
_SCALAR = {Name(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")}
_DTYPE = Name("numpy", "dtype")

ARRAY_NAMES = frozenset({*_RECONSTRUCT, *_FROM_BUFFER, *_SCALAR, _DTYPE, Name("numpy", "ndarray")})
"""What a pickle with arrays names."""

_TYPE_CODES = frozenset({"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"})
_MAX_DIMENSIONS = 8


def read_array(value: object, what: str) -> NDArray[Any]:
    """An array, read-only and a view of the bytes that it came in.

    Args:
        value: What a `PickleReader` made of it.
        what: Names it in messages to humans.

    Raises:
        ProtocolError: It is no array, or its sizes do not agree.
    """
    if not isinstance(value, Made):
        raise ProtocolError(f"{what} is a {type(value).__name__}, not a numpy array")
    if value.function in _RECONSTRUCT and type(value.state) is tuple and len(value.state) == 5:
        _, shape, dtype, is_fortran, raw = value.state
        order = "F" if is_fortran is True else "C"
    elif value.function in _FROM_BUFFER and len(value.arguments) == 4 and value.state is None:
        raw, dtype, shape, order = value.arguments
    else:
        raise ProtocolError(f"{what} is not a numpy array as numpy pickles it")
    return _view(raw, _read_dtype(dtype, what), shape, order, what)


def read_number(value: object, what: str) -> float:
    """A number of Python's or numpy's, as a float that may be infinite or not a number.

    Raises:
        ProtocolError: It is none.
    """
    if type(value) in (float, int, bool):
        assert isinstance(value, (float, int))
        if type(value) is int and abs(value) > 2**64:
            raise ProtocolError(f"{what} is an integer beyond 64 bits")
        return float(value)
    if isinstance(value, Made) and value.function in _SCALAR and len(value.arguments) == 2:
        dtype, raw = value.arguments
        return float(_view(raw, _read_dtype(dtype, what), (), "C", what))
    if isinstance(value, Made):
        array = read_array(value, what)
        if array.size == 1:
            return float(array.reshape(()))
    raise ProtocolError(f"{what} is a {type(value).__name__}, not a number")


def _read_dtype(value: object, what: str) -> np.dtype[Any]:
    if not isinstance(value, Made) or value.function != _DTYPE or not value.arguments:
        raise ProtocolError(f"{what} has no dtype")
    code = value.arguments[0]
    if type(code) is not str or code not in _TYPE_CODES:
        raise ProtocolError(f"{what} has a dtype that is no number's")
    state = value.state
    if state is not None and (type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "=")):
        raise ProtocolError(f"{what} is in another byte order")
    return np.dtype(f"<{code}")


def _view(raw: object, dtype: np.dtype[Any], shape: object, order: object, what: str) -> NDArray[Any]:
    if type(raw) is not memoryview or type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise ProtocolError(f"{what} is not a numpy array as numpy pickles it")
    if not all(type(size) is int and size >= 0 for size in shape) or prod(shape) * dtype.itemsize != len(raw):
        raise ProtocolError(f"{what} has {len(raw)} bytes, which is not what its shape says")
    flat = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)
