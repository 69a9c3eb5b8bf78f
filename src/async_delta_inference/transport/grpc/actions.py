"""A chunk as the pickle that PolicyServer sends: a list of ``TimedAction``, each holding a row of a float tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.grpc.storage import load_storage
from async_delta_inference.transport.grpc.unpickling import Made, Name, PickleReader, refuse_what_cannot_be_read

__all__ = ["TimedActionRecord", "loads_actions"]

MAX_CHUNK_ELEMENTS = 1 << 22
"""Upper bound of the numbers of a chunk, far above any robot's."""

_LATEST_TIMESTAMP_S = 1e18
"""Longer than the age of the universe; NaN and integers that no float can hold are not below it."""

_SENDER = "the server"
_TIMED_ACTION = Name("lerobot.async_inference.helpers", "TimedAction")
_REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_LOAD_STORAGE = Name("torch.storage", "_load_from_bytes")
_ALLOWED = frozenset({_TIMED_ACTION, _REBUILD_TENSOR, _LOAD_STORAGE, Name("collections", "OrderedDict")})


@dataclass(frozen=True, slots=True)
class TimedActionRecord:
    """What a ``lerobot.async_inference.helpers.TimedAction`` holds."""

    timestamp: float
    timestep: int
    action: NDArray[np.float32]


def loads_actions(data: bytes, longest_chunk: int = 1000) -> list[TimedActionRecord]:
    """The records of a ``GetActions`` reply.

    Args:
        data: The reply's bytes, as a server or an attacker wrote them.
        longest_chunk: Bounds how much is read.

    Returns:
        Records with ``timestamp`` (s), ``timestep`` and ``action`` (float32, 1-D, a view), types checked.

    Raises:
        ProtocolError: The bytes are no such pickle, or name anything else. Nothing they name was run.
    """
    # PolicyServer takes 45 operations for an action.
    records = PickleReader(data, _ALLOWED, _SENDER, 1000 + 100 * longest_chunk).load()
    if type(records) is not list or not records:
        raise ProtocolError(f"{_SENDER} sent a {type(records).__name__} where a list of actions belongs")
    storages = _Storages()
    with refuse_what_cannot_be_read(_SENDER):
        return [_read_record(record, storages) for record in records]


class _Storages:
    """The memory behind tensors, each read once: PolicyServer sends equal bytes with every row."""

    def __init__(self) -> None:
        self._by_bytes: dict[bytes, NDArray[np.float32]] = {}
        self._last: Made | None = None
        self._last_elements: NDArray[np.float32] = np.empty(0, np.float32)
        self.elements_left = MAX_CHUNK_ELEMENTS

    def read(self, storage: object) -> NDArray[np.float32]:
        if not isinstance(storage, Made) or storage.function != _LOAD_STORAGE or len(storage.arguments) != 1:
            raise ProtocolError(f"{_SENDER} sent a tensor without a storage")
        if storage is not self._last:
            (view,) = storage.arguments
            if type(view) is not memoryview:
                raise ProtocolError(f"{_SENDER} sent a tensor whose storage is not bytes")
            data = bytes(view)
            if data not in self._by_bytes:
                self._by_bytes[data] = load_storage(memoryview(data), _SENDER)
            self._last, self._last_elements = storage, self._by_bytes[data]
        return self._last_elements


def _read_record(record: object, storages: _Storages) -> TimedActionRecord:
    if not isinstance(record, Made) or record.function != _TIMED_ACTION:
        raise ProtocolError(f"{_SENDER} sent something else where an action belongs")
    fields = record.state
    if type(fields) is not dict or record.arguments or fields.keys() != {"timestamp", "timestep", "action"}:
        raise ProtocolError(f"{_SENDER} sent an action with other fields than LeRobot's")
    timestamp, timestep = fields["timestamp"], fields["timestep"]
    if type(timestep) is not int or not 0 <= timestep < 2**63:
        raise ProtocolError(f"{_SENDER} sent an action whose timestep is not a count")
    if type(timestamp) not in (int, float) or not abs(timestamp) < _LATEST_TIMESTAMP_S:
        raise ProtocolError(f"{_SENDER} sent an action whose timestamp is not a number of seconds")
    return TimedActionRecord(float(timestamp), timestep, _read_tensor(fields["action"], storages))


def _read_tensor(tensor: object, storages: _Storages) -> NDArray[np.float32]:
    """One action, after checking that it lies inside its storage.

    torch's own function would grow the storage to whatever the sizes ask for.
    """
    if not isinstance(tensor, Made) or tensor.function != _REBUILD_TENSOR or not 4 <= len(tensor.arguments) <= 7:
        raise ProtocolError(f"{_SENDER} sent an action that is not a tensor")
    storage, offset, size, stride = tensor.arguments[:4]
    if type(size) is not tuple or type(stride) is not tuple or len(size) != 1 or len(stride) != 1:
        raise ProtocolError(f"{_SENDER} sent a tensor of more or less than one dimension where an action belongs")
    length, step = size[0], stride[0]
    if not (type(offset) is type(length) is type(step) is int):
        raise ProtocolError(f"{_SENDER} sent a tensor whose layout is not made of integers")
    elements = storages.read(storage)
    last = offset + (length - 1) * step
    if length < 1 or step < 0 or offset < 0 or last >= len(elements):
        raise ProtocolError(f"{_SENDER} sent an action that lies outside its own data")
    storages.elements_left -= length
    if storages.elements_left < 0:
        raise ProtocolError(f"{_SENDER} sent a chunk of more than {MAX_CHUNK_ELEMENTS} numbers")
    return np.broadcast_to(elements[offset], length) if step == 0 else elements[offset : last + 1 : step]
