"""Reads the bytes in which torch pickles a tensor's storage, without torch and without running anything.

The format is that of ``torch.save(storage, f, _use_new_zipfile_serialization=False)`` (torch/serialization.py,
``_legacy_save``): four pickles (magic number, protocol version, system information, a reference to the storage), a
pickled list with the storage's key, then the number of elements as an int64 and the elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.grpc.unpickling import PERSISTENT, Made, Name, PickleReader

__all__ = ["load_storage"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_MOST_OPERATIONS = 256
"""Torch takes 60."""


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]
    upper_half_of_float32: bool = False


_STORAGE_TYPES = {
    Name("torch", "FloatStorage"): _StorageType(np.dtype("<f4")),
    Name("torch", "DoubleStorage"): _StorageType(np.dtype("<f8")),
    Name("torch", "HalfStorage"): _StorageType(np.dtype("<f2")),
    Name("torch", "BFloat16Storage"): _StorageType(np.dtype("<u2"), upper_half_of_float32=True),
}


def load_storage(data: memoryview, sender: str) -> NDArray[np.float32]:
    """The elements of a floating-point storage.

    Args:
        data: As a server or an attacker wrote them.
        sender: Names it in messages to humans.

    Returns:
        float32 (numel,); a view of ``data`` where that holds float32.

    Raises:
        ProtocolError: Not such a storage.
    """
    reader = PickleReader(data, _STORAGE_TYPES, sender, _MOST_OPERATIONS)
    magic_number, version, system = (reader.load() for _ in range(3))
    if type(magic_number) is not int or type(version) is not int or type(system) is not dict:
        raise ProtocolError(f"{sender} sent a tensor's storage in a format that is not torch's")
    if (magic_number, version) != (_MAGIC_NUMBER, _PROTOCOL_VERSION):
        raise ProtocolError(f"{sender} sent a tensor's storage in a format that is not torch's")
    if system.get("little_endian") is not True:
        raise ProtocolError(f"{sender} sent a tensor's storage in another byte order")
    kind, key, numel = _read_reference(reader.load(), sender)
    keys = reader.load()
    if type(keys) is not list or len(keys) != 1 or type(keys[0]) is not str or keys[0] != key:
        raise ProtocolError(f"{sender} sent something else where a tensor's storage belongs")
    return _read_elements(reader.rest(), kind, numel, sender)


def _read_reference(reference: object, sender: str) -> tuple[_StorageType, str, int]:
    if not isinstance(reference, Made) or reference.function != PERSISTENT:
        raise ProtocolError(f"{sender} sent something else where a tensor's storage belongs")
    fields = reference.arguments[0]
    if type(fields) is not tuple or len(fields) != 6:
        raise ProtocolError(f"{sender} sent a pickle that refers to an object outside itself")
    tag, name, key, location, numel, view = fields
    if type(tag) is not str or type(location) is not str or type(key) is not str or type(numel) is not int:
        raise ProtocolError(f"{sender} sent a tensor's storage whose fields have the wrong types")
    if tag != "storage" or location != "cpu" or view is not None or type(name) is not Name:
        raise ProtocolError(f"{sender} sent a {tag[:20]} on {location[:20]} where a tensor's storage belongs")
    return _STORAGE_TYPES[name], key, numel


def _read_elements(rest: memoryview, kind: _StorageType, numel: int, sender: str) -> NDArray[np.float32]:
    said, raw = int.from_bytes(rest[:8], "little"), rest[8:]
    if said != numel or len(raw) != numel * kind.dtype.itemsize:
        raise ProtocolError(f"{sender} sent a tensor's storage whose sizes do not agree")
    elements = np.frombuffer(raw, kind.dtype)
    if kind.upper_half_of_float32:
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32, copy=False)
