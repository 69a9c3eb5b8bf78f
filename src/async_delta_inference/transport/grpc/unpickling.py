"""Reads the one pickle that the protocol sends to a client: a list of ``TimedAction``, each holding a float tensor.

Unpickling runs whatever the bytes say (CVE-2026-25874), so this reader resolves four names and nothing else, builds the
tensors itself, and checks every size before memory is touched.
"""

from __future__ import annotations

import collections
import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ProtocolError
from async_delta_inference.transport.grpc.storage import load_storage

__all__ = ["TimedActionRecord", "loads_actions"]

MAX_ACTION_ELEMENTS = 1 << 20
"""Upper bound of the elements of one action, far above any robot's."""


class TimedActionRecord:
    """Stands in for ``lerobot.async_inference.helpers.TimedAction``; the unpickler fills its attributes."""

    timestamp: float
    timestep: int
    action: NDArray[np.float32]


def loads_actions(data: bytes) -> list[TimedActionRecord]:
    """The records of a ``GetActions`` reply.

    Args:
        data: The reply's bytes, as a server or an attacker wrote them.

    Returns:
        Records with ``timestamp`` (s), ``timestep`` and ``action`` (float32, 1-D), types checked.

    Raises:
        ProtocolError: The bytes are no such pickle, or name anything else. Nothing they name was run.
    """
    try:
        records = _ActionUnpickler(data).load()
    except ProtocolError:
        raise
    except Exception as exc:  # A pickle machine fed with garbage raises about anything.
        raise ProtocolError(f"the server sent actions that cannot be read: {type(exc).__name__}: {exc}") from exc
    if not isinstance(records, list) or not records:
        raise ProtocolError(f"the server sent {type(records).__name__} where a list of actions belongs")
    for record in records:
        _check_record(record)
    return records


@dataclass(frozen=True)
class _Storage:
    """The elements behind a tensor, flat."""

    elements: NDArray[np.float32]


class _ActionUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        # Upstream pickles row views, each with the bytes of the whole chunk: read equal bytes once.
        self._storages: dict[bytes, _Storage] = {}
        self._allowed = {
            ("lerobot.async_inference.helpers", "TimedAction"): TimedActionRecord,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): self._load_storage,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise ProtocolError(
                f"the server's reply names {module}.{name}, which the protocol does not carry"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise ProtocolError("the server's reply refers to an object outside itself")

    def _load_storage(self, data: bytes) -> _Storage:
        if not isinstance(data, bytes):
            raise ProtocolError("the server sent a tensor whose storage is not bytes")
        if data not in self._storages:
            self._storages[data] = _Storage(load_storage(data))
        return self._storages[data]


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> NDArray[np.float32]:
    """One action, after checking that it lies inside its storage.

    torch's own function would grow the storage to whatever the sizes ask for.
    """
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in (offset, *size, *stride)):
        raise ProtocolError("the server sent a tensor whose layout is not made of integers")
    if len(size) != 1 or len(stride) != 1:
        raise ProtocolError(f"the server sent an action of {len(size)} dimensions; an action has one")
    length, step = size[0], stride[0]
    if not 1 <= length <= MAX_ACTION_ELEMENTS or step < 0 or offset < 0:
        raise ProtocolError(f"the server sent an action of size {length}, stride {step}, offset {offset}")
    if offset + (length - 1) * step >= len(storage.elements):
        raise ProtocolError("the server sent an action that lies outside its own data")
    action: NDArray[np.float32] = storage.elements[offset + step * np.arange(length)]
    return action


def _check_record(record: object) -> None:
    if not isinstance(record, TimedActionRecord):
        raise ProtocolError(f"the server sent {type(record).__name__} where an action belongs")
    fields = vars(record)
    if fields.keys() != {"timestamp", "timestep", "action"}:
        raise ProtocolError(f"the server sent an action with the fields {sorted(map(str, fields))}")
    if not isinstance(record.action, np.ndarray) or type(record.timestep) is not int:
        raise ProtocolError("the server sent an action whose fields have the wrong types")
    if not isinstance(record.timestamp, (int, float)):
        raise ProtocolError("the server sent an action whose timestamp is not a number")
