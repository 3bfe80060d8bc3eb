"""Pickles read as data: a stack machine for the opcodes that torch writes, which runs nothing.

What a pickle would import is looked up in a table of our own functions, and refused when it is not
there; nothing is imported. Only dicts with keys of text, lists, tuples, numbers and text come out,
beside what those functions make. https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import pickle  # only for the names of its opcodes
import struct
from collections.abc import Callable, Mapping
from typing import Any

from softgate.checkpoint.errors import quote

MAX_BYTES = 1 << 26
# A tensor takes about 60; one byte may become a list of 56 bytes.
MAX_OPCODES = 1 << 20

Function = Callable[[tuple[Any, ...]], Any]  # of the arguments that the pickle gives

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_NUMBERS = {
    pickle.BININT: "<i",
    pickle.BININT1: "<B",
    pickle.BININT2: "<H",
    pickle.BINFLOAT: ">d",
}
_TEXTS = {
    pickle.SHORT_BINUNICODE: "<B",
    pickle.BINUNICODE: "<I",
    pickle.BINUNICODE8: "<Q",
    pickle.SHORT_BINSTRING: "<B",  # what Python 2 wrote
    pickle.BINSTRING: "<I",
}
_EMPTY: dict[bytes, Callable[[], Any]] = {
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_TUPLE: tuple,
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


class PickleReader:
    """Reads one pickle of `data` from `position` on, which `load` leaves behind its end.

    functions: what it may call, by module and name. storage: what becomes of a persistent id.

    Raises ValueError for everything that is not as expected.
    """

    def __init__(
        self,
        data: memoryview,
        position: int = 0,
        functions: Mapping[tuple[str, str], Any] | None = None,
        storage: Function | None = None,
    ) -> None:
        self.position = position
        self._data = data[: position + MAX_BYTES]
        self._functions = functions or {}
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The value that the pickle holds."""
        for _ in range(MAX_OPCODES):
            opcode = bytes(self._take(1))
            if opcode == pickle.STOP:
                value = self._pop()
                if self._stack or self._marks:
                    raise ValueError("the pickle ends with values left over")
                return value
            self._step(opcode)
        raise ValueError(f"the pickle has more than {MAX_OPCODES} steps")

    def _step(self, opcode: bytes) -> None:
        stack = self._stack
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _NUMBERS:
            stack.append(self._number(_NUMBERS[opcode]))
        elif opcode in _TEXTS:
            stack.append(str(self._take(self._number(_TEXTS[opcode])), "utf-8"))
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            parts = [self._pop() for _ in range(_TUPLES[opcode])]
            stack.append(tuple(reversed(parts)))
        else:
            self._further(opcode)

    def _further(self, opcode: bytes) -> None:
        stack = self._stack
        match opcode:
            case pickle.PROTO:
                self._take(1)
            case pickle.FRAME:
                self._take(8)
            case pickle.MARK:
                self._marks.append(len(stack))
            case pickle.LONG1:
                stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            case pickle.BINPUT:
                self._memo[self._number("<B")] = self._top()
            case pickle.LONG_BINPUT:
                self._memo[self._number("<I")] = self._top()
            case pickle.MEMOIZE:
                self._memo[len(self._memo)] = self._top()
            case pickle.BINGET:
                stack.append(self._remembered(self._number("<B")))
            case pickle.LONG_BINGET:
                stack.append(self._remembered(self._number("<I")))
            case pickle.TUPLE:
                stack.append(tuple(self._pop_to_mark()))
            case pickle.APPEND:
                value = self._pop()
                self._expected(list).append(value)
            case pickle.APPENDS:
                values = self._pop_to_mark()
                self._expected(list).extend(values)
            case pickle.SETITEM:
                value, key = self._pop(), self._pop()
                _set(self._expected(dict), key, value)
            case pickle.SETITEMS:
                values = self._pop_to_mark()
                if len(values) % 2:
                    raise ValueError("the pickle sets a key without a value")
                target = self._expected(dict)
                for key, value in zip(values[::2], values[1::2], strict=True):
                    _set(target, key, value)
            case pickle.GLOBAL:
                stack.append(self._function(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name, module = self._pop(), self._pop()
                stack.append(self._function(module, name))
            case pickle.REDUCE:
                arguments, function = self._pop(), self._pop()
                if not callable(function) or type(arguments) is not tuple:
                    raise ValueError("the pickle calls what is not a function")
                stack.append(function(arguments))
            case pickle.BUILD:
                self._pop()  # such as the versions that torch notes beside a state_dict
                self._expected(dict)
            case pickle.BINPERSID if self._storage is not None:
                stack.append(self._storage(self._pop()))
            case _:
                raise ValueError(f"the pickle has opcode {opcode!r}, which tensors do not need")

    def _take(self, count: int) -> memoryview:
        taken = self._data[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError(f"the pickle is cut off, or longer than {MAX_BYTES} bytes")
        self.position += count
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        start = self.position
        longest = bytes(self._data[start : start + 256])
        length = longest.find(b"\n")
        if length < 0:
            raise ValueError("the pickle names a function without end")
        self.position += length + 1
        return longest[:length].decode()

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the pickle takes a value that is not there")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("the pickle goes back to a mark that is not there")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _expected(self, kind: type) -> Any:
        """The top of the stack."""
        value = self._top()
        if type(value) is not kind:
            raise ValueError(f"the pickle uses {type(value).__name__} as {kind.__name__}")
        return value

    def _remembered(self, index: int) -> Any:
        if index not in self._memo:
            raise ValueError(f"the pickle refers to value {index}, which is not there")
        return self._memo[index]

    def _function(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:
            raise ValueError("the pickle names a function by what is not text")
        found = self._functions.get((module, name))
        if found is None:
            raise ValueError(f"the pickle asks for {quote(f'{module}.{name}')}, not for tensors")
        return found


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    # Not only for tidiness: hashing a tuple that is nested deeply overflows the stack of C.
    if type(key) is not str:
        raise ValueError(f"the pickle has a key of type {type(key).__name__}, expected str")
    if key in target:
        raise ValueError(f"the pickle has {quote(key)} twice")
    target[key] = value
