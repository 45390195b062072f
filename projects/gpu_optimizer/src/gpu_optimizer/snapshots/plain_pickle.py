"""Reads a pickle of plain data without the power of `pickle` to run code.

PyTorch stores memory snapshots as pickles. Python's own reader would call whatever the file names;
this one knows only the instructions that build dictionaries, lists, tuples, strings and numbers,
and refuses every other. So the worst a hostile file can do is to be refused.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gpu_optimizer.errors import GpuOptimizerError

Plain = (
    bool | int | float | str | None | list["Plain"] | dict["Plain", "Plain"] | tuple["Plain", ...]
)

_MAX_INT_BYTES: Final = 16
_MARK: Final = object()


class InvalidSnapshotError(GpuOptimizerError):
    """A file that is no memory snapshot, or that is refused."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Not a readable memory snapshot: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SnapshotLimits:
    """How much of a file is read at most."""

    max_bytes: int = 1 << 28
    max_objects: int = 20_000_000
    """Containers, strings and numbers that the file may make."""


def read_plain_pickle(data: bytes, limits: SnapshotLimits | None = None) -> object:
    """Return what a pickle of plain data holds.

    Parameters
    ----------
    data
        Protocol 2 to 5.
    limits
        None: the default ones.

    Raises
    ------
    InvalidSnapshotError
        The file names a class or function, is damaged, or exceeds the limits.
    """
    limits = limits or SnapshotLimits()
    if len(data) > limits.max_bytes:
        raise InvalidSnapshotError(f"it is larger than {limits.max_bytes:,} bytes.")
    try:
        return _Machine(data, limits.max_objects).run()
    except (IndexError, KeyError, struct.error) as error:
        raise InvalidSnapshotError("the pickle is damaged.") from error
    except (TypeError, UnicodeDecodeError) as error:
        raise InvalidSnapshotError("the pickle is not one of plain data.") from error


class _Machine:
    """The stack machine that a pickle is a program for, less everything that makes objects."""

    def __init__(self, data: bytes, max_objects: int) -> None:
        self._data = data
        self._position = 0
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._max_objects = max_objects

    def run(self) -> object:
        data, steps = self._data, _STEPS
        n_left = self._max_objects
        while True:
            code = data[self._position]
            self._position += 1
            if code == _STOP:
                if len(self._stack) != 1:
                    raise InvalidSnapshotError("the pickle is damaged.")
                return self._stack[0]
            step = steps.get(code)
            if step is None:
                name = chr(code) if 32 < code < 127 else f"0x{code:02x}"
                raise InvalidSnapshotError(
                    f"the pickle's instruction {name!r} does more than hold plain data."
                )
            n_left -= 1
            if n_left < 0:
                raise InvalidSnapshotError(f"more than {self._max_objects:,} values.")
            step(self)

    def _take(self, n_bytes: int) -> bytes:
        start = self._position
        part = self._data[start : start + n_bytes]
        if len(part) != n_bytes:
            raise InvalidSnapshotError("the file ends too early.")
        self._position = start + n_bytes
        return part

    def _take_number(self, n_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(n_bytes), "little", signed=signed)

    def _pop_marked(self) -> list[object]:
        stack = self._stack
        index = len(stack) - 1
        while stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise InvalidSnapshotError("the pickle is damaged.")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def skip(self, n_bytes: int) -> None:
        self._take(n_bytes)

    def push(self, value: object) -> None:
        self._stack.append(value)

    def push_text(self, length_bytes: int) -> None:
        self._stack.append(self._take(self._take_number(length_bytes)).decode("utf-8"))

    def push_number(self, n_bytes: int, *, signed: bool) -> None:
        self._stack.append(self._take_number(n_bytes, signed=signed))

    def push_long(self, length_bytes: int) -> None:
        n_bytes = self._take_number(length_bytes)
        if n_bytes > _MAX_INT_BYTES:
            raise InvalidSnapshotError("a number is larger than any address.")
        self._stack.append(self._take_number(n_bytes, signed=True))

    def push_float(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def make_tuple(self, n_items: int) -> None:
        items = self._stack[len(self._stack) - n_items :]
        if len(items) != n_items or any(item is _MARK for item in items):
            raise InvalidSnapshotError("the pickle is damaged.")
        del self._stack[len(self._stack) - n_items :]
        self._stack.append(tuple(items))

    def make_marked_tuple(self) -> None:
        items = self._pop_marked()
        self._stack.append(tuple(items))

    def append(self) -> None:
        item = self._stack.pop()
        self._extend([item])

    def append_marked(self) -> None:
        self._extend(self._pop_marked())

    def _extend(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise InvalidSnapshotError("the pickle is damaged.")
        target.extend(items)

    def set_item(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._update([key, value])

    def set_marked(self) -> None:
        self._update(self._pop_marked())

    def _update(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise InvalidSnapshotError("the pickle is damaged.")
        for key in items[::2]:
            # Of other keys an attacker can make many with one hash, or one without an end.
            if not isinstance(key, str):
                raise InvalidSnapshotError("a key is not text.")
        target.update(zip(items[::2], items[1::2], strict=True))

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def put(self, n_bytes: int) -> None:
        self._memo[self._take_number(n_bytes)] = self._stack[-1]

    def get(self, n_bytes: int) -> None:
        self._stack.append(self._memo[self._take_number(n_bytes)])


_STOP: Final = ord(".")
_STEPS: Final[dict[int, Callable[[_Machine], None]]] = {
    0x80: lambda machine: machine.skip(1),  # PROTO
    0x95: lambda machine: machine.skip(8),  # FRAME: only says how much to read ahead
    0x94: _Machine.memoize,
    ord("q"): lambda machine: machine.put(1),
    ord("r"): lambda machine: machine.put(4),
    ord("h"): lambda machine: machine.get(1),
    ord("j"): lambda machine: machine.get(4),
    ord("("): lambda machine: machine.push(_MARK),
    ord("}"): lambda machine: machine.push({}),
    ord("]"): lambda machine: machine.push([]),
    ord(")"): lambda machine: machine.push(()),
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("K"): lambda machine: machine.push_number(1, signed=False),
    ord("M"): lambda machine: machine.push_number(2, signed=False),
    ord("J"): lambda machine: machine.push_number(4, signed=True),
    0x8A: lambda machine: machine.push_long(1),
    0x8B: lambda machine: machine.push_long(4),
    ord("G"): _Machine.push_float,
    0x8C: lambda machine: machine.push_text(1),
    ord("X"): lambda machine: machine.push_text(4),
    0x8D: lambda machine: machine.push_text(8),
    0x85: lambda machine: machine.make_tuple(1),
    0x86: lambda machine: machine.make_tuple(2),
    0x87: lambda machine: machine.make_tuple(3),
    ord("t"): _Machine.make_marked_tuple,
    ord("a"): _Machine.append,
    ord("e"): _Machine.append_marked,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_marked,
}
