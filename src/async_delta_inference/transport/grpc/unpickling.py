"""Reads pickles that a peer wrote as inert data: nothing that the bytes name is looked up, called or built.

Unpickling runs whatever the bytes say (CVE-2026-25874), and Python's unpickler can be made to take gigabytes for nine
bytes (a memo index) or to hash for years (nested tuples as a key). This machine knows the operations that Python's
pickler writes for plain data, takes a bounded number of them, and makes of a named class or function a `Name` and of
what it was to build a `Made`. What a `Made` means is decided by whoever asked for it: `actions`, `arrays`, `wire`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from async_delta_inference.errors import ProtocolError

__all__ = ["Made", "Name", "PickleReader", "refuse_what_cannot_be_read"]

_NEWEST_PROTOCOL = 5
_LONGEST_LINE = 200
_unpack_float = struct.Struct(">d").unpack_from


class Name(NamedTuple):
    """A class or function that the bytes name. It was on the reader's list, and stays a name."""

    module: str
    name: str


class Made:
    """What the bytes say is to be built: ``function(*arguments)``, and then given ``state``."""

    __slots__ = ("arguments", "function", "state")

    def __init__(self, function: Name | str, arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.state: Any = None


PERSISTENT = "persistent id"
"""The function of a `Made` that stands for an object outside the bytes; its one argument is the object's id."""


class PickleReader:
    """Reads one pickle after the other from the same bytes.

    What it gives is made of None, bool, int, float, str, list, tuple, dict with str keys, `Name`, `Made`, and
    memoryview of ``data`` in the place of bytes. The values may hold each other in circles, so walk along expected
    shapes only.

    Args:
        data: As a peer or an attacker wrote them.
        allowed: The (module, name) pairs that may occur.
        sender: Names the peer in messages to humans.
        most_operations: Bound of the operations of all pickles together; each takes some 200 bytes at the most, besides
            text, which is no longer than ``data``.
    """

    def __init__(self, data: bytes | memoryview, allowed: Collection[Name], sender: str, most_operations: int) -> None:
        self.position = 0
        self._data = memoryview(data)
        self._allowed = allowed
        self._sender = sender
        self._operations_left = most_operations
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next pickle's value.

        Raises:
            ProtocolError: It is none, names what is not allowed, or takes too many operations.
        """
        self._stack, self._marks, self._memo = [], [], {}
        with refuse_what_cannot_be_read(self._sender):
            self._run()
            value = self._stack.pop()
        if self._stack or self._marks:
            raise ProtocolError(f"{self._sender} sent a pickle that is not complete")
        return value

    def rest(self) -> memoryview:
        """What follows the last pickle."""
        return self._data[self.position :]

    def _run(self) -> None:
        data, operations, stack, memo = self._data, _OPERATIONS, self._stack, self._memo
        for left in range(self._operations_left, 0, -1):
            operation = data[self.position]
            self.position += 1
            # Half of a chunk's operations are these two: a call of a method for each would be felt.
            if operation == _MEMOIZE:
                memo[len(memo)] = stack[-1]
            elif operation == _BINGET:
                stack.append(memo[data[self.position]])
                self.position += 1
            elif operation == _STOP:
                self._operations_left = left - 1
                return
            else:
                perform = operations.get(operation)
                if perform is None:
                    raise ProtocolError(f"{self._sender} sent a pickle with an operation that no message needs")
                perform(self)
        raise ProtocolError(f"{self._sender} sent a pickle of more operations than any such message needs")

    # Reading arguments.

    def _take(self, size: int) -> memoryview:
        start = self.position
        end = start + size
        if end > len(self._data):
            raise ProtocolError(f"{self._sender} sent a pickle that is shorter than it says")
        self.position = end
        return self._data[start:end]

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        line, separator, _ = bytes(self._data[self.position : self.position + _LONGEST_LINE]).partition(b"\n")
        if not separator:
            raise ProtocolError(f"{self._sender} sent a pickle with a name that does not end")
        self.position += len(line) + 1
        return line.decode()

    def _from_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # Operations. Each is named after pickle's own.

    def _proto(self) -> None:
        if self._byte() > _NEWEST_PROTOCOL:
            raise ProtocolError(f"{self._sender} sent a pickle of an unknown protocol")

    def _frame(self) -> None:
        self.position += 8

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _binput(self) -> None:
        self._memo[self._byte()] = self._stack[-1]

    def _long_binput(self) -> None:
        self._memo[self._unsigned(4)] = self._stack[-1]

    def _long_binget(self) -> None:
        self._stack.append(self._memo[self._unsigned(4)])

    def _none(self) -> None:
        self._stack.append(None)

    def _newtrue(self) -> None:
        self._stack.append(True)

    def _newfalse(self) -> None:
        self._stack.append(False)

    def _binint(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _binint1(self) -> None:
        self._stack.append(self._byte())

    def _binint2(self) -> None:
        self._stack.append(self._unsigned(2))

    def _long1(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._byte()), "little", signed=True))

    def _binfloat(self) -> None:
        self._stack.append(_unpack_float(self._data, self.position)[0])
        self.position += 8

    def _push_text(self, size: int) -> None:
        self._stack.append(str(self._take(size), "utf-8", "surrogatepass"))

    def _short_binunicode(self) -> None:
        self._push_text(self._byte())

    def _binunicode(self) -> None:
        self._push_text(self._unsigned(4))

    def _binunicode8(self) -> None:
        self._push_text(self._unsigned(8))

    def _short_binbytes(self) -> None:
        self._stack.append(self._take(self._byte()))

    def _binbytes(self) -> None:
        self._stack.append(self._take(self._unsigned(4)))

    def _binbytes8(self) -> None:
        self._stack.append(self._take(self._unsigned(8)))

    def _empty_list(self) -> None:
        self._stack.append([])

    def _append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self._from_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ProtocolError(f"{self._sender} sent a pickle that appends to a {type(target).__name__}")
        target.extend(values)

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _tuple1(self) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _tuple2(self) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _tuple3(self) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _tuple(self) -> None:
        self._stack.append(tuple(self._from_mark()))

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._from_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        keys, values = items[::2], items[1::2]
        # Any other key may take for ever to hash.
        if type(target) is not dict or not all(type(key) is str for key in keys):
            raise ProtocolError(f"{self._sender} sent a pickle with a dictionary whose keys are not texts")
        target.update(zip(keys, values, strict=True))

    def _global(self) -> None:
        module = self._line()
        self._push_name(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or Name(module, name) not in self._allowed:
            raise ProtocolError(
                f"{self._sender} sent a pickle that names {str(module)[:80]}.{str(name)[:80]}, which the protocol does "
                "not carry"
            )
        self._stack.append(Name(module, name))

    def _make(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise ProtocolError(f"{self._sender} sent a pickle that calls a {type(function).__name__}")
        self._stack.append(Made(function, arguments))

    def _build(self) -> None:
        state, made = self._stack.pop(), self._stack[-1]
        if type(made) is not Made or made.state is not None:
            raise ProtocolError(f"{self._sender} sent a pickle that gives a {type(made).__name__} a state")
        made.state = state

    def _binpersid(self) -> None:
        self._stack.append(Made(PERSISTENT, (self._stack.pop(),)))


_STOP = ord(".")
_MEMOIZE = 0x94
_BINGET = ord("h")

_OPERATIONS: dict[int, Callable[[PickleReader], None]] = {
    0x80: PickleReader._proto,
    0x95: PickleReader._frame,
    ord("("): PickleReader._mark,
    ord("q"): PickleReader._binput,
    ord("r"): PickleReader._long_binput,
    ord("j"): PickleReader._long_binget,
    ord("N"): PickleReader._none,
    0x88: PickleReader._newtrue,
    0x89: PickleReader._newfalse,
    ord("J"): PickleReader._binint,
    ord("K"): PickleReader._binint1,
    ord("M"): PickleReader._binint2,
    0x8A: PickleReader._long1,
    ord("G"): PickleReader._binfloat,
    0x8C: PickleReader._short_binunicode,
    ord("X"): PickleReader._binunicode,
    0x8D: PickleReader._binunicode8,
    ord("C"): PickleReader._short_binbytes,
    ord("B"): PickleReader._binbytes,
    0x8E: PickleReader._binbytes8,
    0x96: PickleReader._binbytes8,  # BYTEARRAY8: whoever reads it does not write to it
    ord("]"): PickleReader._empty_list,
    ord("a"): PickleReader._append,
    ord("e"): PickleReader._appends,
    ord(")"): PickleReader._empty_tuple,
    0x85: PickleReader._tuple1,
    0x86: PickleReader._tuple2,
    0x87: PickleReader._tuple3,
    ord("t"): PickleReader._tuple,
    ord("}"): PickleReader._empty_dict,
    ord("s"): PickleReader._setitem,
    ord("u"): PickleReader._setitems,
    ord("c"): PickleReader._global,
    0x93: PickleReader._stack_global,
    ord("R"): PickleReader._make,
    0x81: PickleReader._make,  # NEWOBJ
    ord("b"): PickleReader._build,
    ord("Q"): PickleReader._binpersid,
}


@contextmanager
def refuse_what_cannot_be_read(sender: str) -> Iterator[None]:
    """Whatever reading garbage raises becomes a `ProtocolError`.

    Args:
        sender: Names the peer in the message.
    """
    try:
        yield
    except ProtocolError:
        raise
    except Exception as exc:
        raise ProtocolError(f"{sender} sent a message that cannot be read: {type(exc).__name__}: {exc}") from exc
