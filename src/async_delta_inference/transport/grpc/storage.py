"""Reads the bytes in which torch pickles a tensor's storage, without torch and without running anything.

The format is that of ``torch.save(storage, f, _use_new_zipfile_serialization=False)`` (torch/serialization.py,
``_legacy_save``): four pickles (magic number, protocol version, system information, a reference to the storage), a
pickled list with the storage's key, then the number of elements as an int64 and the elements.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError

__all__ = ["load_storage"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]
    upper_half_of_float32: bool = False


_STORAGE_TYPES = {
    "FloatStorage": _StorageType(np.dtype("<f4")),
    "DoubleStorage": _StorageType(np.dtype("<f8")),
    "HalfStorage": _StorageType(np.dtype("<f2")),
    "BFloat16Storage": _StorageType(np.dtype("<u2"), upper_half_of_float32=True),
}


def load_storage(data: bytes) -> NDArray[np.float32]:
    """The elements of a floating-point storage.

    Args:
        data: As a server or an attacker wrote them.

    Returns:
        float32 (numel,), of its own memory.

    Raises:
        ProtocolError: Not such a storage.
        Exception: Whatever a pickle machine fed with garbage raises; nothing that the bytes name was run.
    """
    stream = io.BytesIO(data)
    header = [_StorageUnpickler(stream).load() for _ in range(3)]
    if header[:2] != [_MAGIC_NUMBER, _PROTOCOL_VERSION] or not isinstance(header[2], dict):
        raise ProtocolError("the server sent a tensor's storage in a format that is not torch's")
    if header[2].get("little_endian") is not True:
        raise ProtocolError("the server sent a tensor's storage in another byte order")
    reference = _StorageUnpickler(stream).load()
    keys = _StorageUnpickler(stream).load()
    if not isinstance(reference, _Reference) or keys != [reference.key]:
        raise ProtocolError("the server sent something else where a tensor's storage belongs")
    numel = int.from_bytes(stream.read(8), "little")
    kind = reference.kind
    rest = stream.read()
    if numel != reference.numel or len(rest) != numel * kind.dtype.itemsize:
        raise ProtocolError("the server sent a tensor's storage whose sizes do not agree")
    elements = np.frombuffer(rest, kind.dtype)
    if kind.upper_half_of_float32:
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32)


class _Reference(NamedTuple):
    kind: _StorageType
    key: str
    numel: int


class _StorageUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        raise ProtocolError(f"the server's reply names {module}.{name}, which the protocol does not carry")

    def persistent_load(self, pid: Any) -> _Reference:
        if not isinstance(pid, tuple) or len(pid) != 6:
            raise ProtocolError("the server's reply refers to an object outside itself")
        tag, kind, key, location, numel, view = pid
        if tag != "storage" or location != "cpu" or view is not None:
            raise ProtocolError(f"the server sent a {tag} on {location} where a tensor's storage belongs")
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(numel) is not int:
            raise ProtocolError("the server sent a tensor's storage whose fields have the wrong types")
        return _Reference(kind, key, numel)
