"""Reads the pickle of a PyTorch file as data: no import, no call, no object but plain ones.

It knows the opcodes that `torch.save` writes for dictionaries of tensors. What would be a call of a
global is data here: only rebuilding a tensor and an ordered dictionary have a meaning, and anything
else is refused by its name. Source of the opcodes: CPython, Lib/pickletools.py.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from engine_worker.errors import UnsafePickleError

MAX_PICKLE_BYTES: Final = 64 * 2**20
"""A tensor takes about 200 bytes in it."""
_MAX_STACK: Final = 2**20
_MAX_STEPS: Final = 2**22
"""Each may keep about 100 bytes; a tensor takes about 35."""
_MAX_AXES: Final = 64
_ELEMENT_TYPES: Final = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "U8",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_TYPE_MODULES: Final = ("torch", "torch.storage")
_ORDERED_DICT: Final = "collections.OrderedDict"
_SIZE: Final = "torch.Size"
_REBUILD: Final = "torch._utils._rebuild_tensor_v2"
_REBUILD_UNTYPED: Final = "torch._utils._rebuild_tensor_v3"
_PARAMETER: Final = "torch._utils._rebuild_parameter"
_CALLABLE: Final = (_ORDERED_DICT, _SIZE, _REBUILD, _REBUILD_UNTYPED, _PARAMETER)


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage of the archive: its file `data/KEY` and what it holds."""

    key: str
    dtype: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; sizes, strides and the offset count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that a pickle would have imported."""

    name: str

    @property
    def element_type(self) -> str | None:
        module, _, name = self.name.rpartition(".")
        return _ELEMENT_TYPES.get(name) if module in _TYPE_MODULES else None


class _Mark:
    """Where a tuple, a list or the items of a dictionary begin."""


_MARK: Final = _Mark()


def read_pickle(data: bytes) -> Any:
    """What a pickle holds: dictionaries, lists, tuples, strings, numbers and `TensorRef`s.

    Raises:
        UnsafePickleError: It holds anything else; names the opcode or the global, and its place.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise UnsafePickleError(f"its pickle has {len(data)} bytes, more than {MAX_PICKLE_BYTES}")
    reader = _Reader(data)
    try:
        return reader.run()
    except (IndexError, struct.error, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise UnsafePickleError(
            f"its pickle is broken at byte {reader.position} ({error!r:.80})"
        ) from error


class _Reader:
    """A stack machine over the bytes of one pickle."""

    def __init__(self, data: bytes) -> None:
        self.position = 0
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            place, code = self.position, self._take(1)
            if code == b".":
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise UnsafePickleError(
                    f"its pickle holds the opcode {code!r} at byte {place}, which no tensor needs"
                )
            step(self)
            if len(self._stack) > _MAX_STACK:
                raise UnsafePickleError(f"its pickle nests too deep at byte {place}")
        raise UnsafePickleError(f"its pickle holds more than {_MAX_STEPS} operations")

    def _take(self, count: int) -> bytes:
        data = self._data[self.position : self.position + count]
        if len(data) < count:
            raise ValueError("cut short")
        self.position += count
        return data

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                found = self._stack[index + 1 :]
                del self._stack[index:]
                return found
        raise ValueError("no mark")

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def text(self, size: int) -> None:
        self._push(self._take(size).decode("utf-8", "surrogatepass"))

    def line(self) -> str:
        end = self._data.index(b"\n", self.position)
        text = self._data[self.position : end].decode("ascii")
        self.position = end + 1
        return text

    def global_of(self, module: str, name: str) -> None:
        found = _Global(f"{module}.{name}")
        if found.name not in _CALLABLE and found.element_type is None:
            raise UnsafePickleError(
                f"its pickle asks for the global {found.name!r:.200}, and only tensors are read"
            )
        self._push(found)

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global without a name")
        self.global_of(module, name)

    def long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items of no dictionary")
        # A tuple of tuples, each twice in the next, would be hashed forever, and so would large
        # numbers of one hash.
        if not all(map(_is_key, items[::2])):
            raise ValueError("a key that is neither a string nor a number")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("items of no list")
        target.extend(items)

    def build(self) -> None:
        """Attributes of an object; an ordered dictionary's own (`_metadata`) say nothing here."""
        self._pop()
        if not isinstance(self._stack[-1], dict):
            raise ValueError("a state of no dictionary")

    def storage(self) -> None:
        reference = self._pop()
        kind, element, key, _location, count = reference
        if kind != "storage" or not isinstance(element, _Global) or element.element_type is None:
            raise ValueError("a reference to no storage")
        if not isinstance(key, str) or not _is_count(count):
            raise ValueError("a storage without a size")
        self._push(StorageRef(key, element.element_type, count))

    def reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, _Global) or called.name not in _CALLABLE:
            what = called.name if isinstance(called, _Global) else f"a {type(called).__name__}"
            raise UnsafePickleError(f"its pickle calls {what:.200}, and only tensors are read")
        if not isinstance(arguments, tuple):
            raise ValueError("a call without arguments")
        self._push(_MEANINGS[called.name](arguments))


def _is_key(value: object) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an ordered dictionary that isn't filled afterwards")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    (sizes,) = arguments
    if not isinstance(sizes, tuple) or len(sizes) > _MAX_AXES:
        raise ValueError("a size that is none")
    return sizes


def _tensor(arguments: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, strides = arguments[:4]
    dtype = storage.dtype if isinstance(storage, StorageRef) else ""
    return _checked(storage, dtype, offset, shape, strides)


def _untyped_tensor(arguments: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, strides, _needs_gradient, _hooks, element = arguments[:7]
    if not isinstance(element, _Global) or element.element_type is None:
        raise ValueError("a tensor without a type")
    return _checked(storage, element.element_type, offset, shape, strides)


def _checked(storage: Any, dtype: str, offset: Any, shape: Any, strides: Any) -> TensorRef:
    if not isinstance(storage, StorageRef) or not _is_count(offset):
        raise ValueError("a tensor of no storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without a shape")
    if (
        len(shape) != len(strides)
        or len(shape) > _MAX_AXES
        or not all(map(_is_count, (*shape, *strides)))
    ):
        raise ValueError("a tensor whose shape is none")
    return TensorRef(storage, dtype, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> TensorRef:
    if not isinstance(arguments[0], TensorRef):
        raise ValueError("a parameter of no tensor")
    return arguments[0]


_MEANINGS: Final[dict[str, Callable[[tuple[Any, ...]], Any]]] = {
    _ORDERED_DICT: _ordered_dict,
    _SIZE: _size,
    _REBUILD: _tensor,
    _REBUILD_UNTYPED: _untyped_tensor,
    _PARAMETER: _parameter,
}

_STEPS: Final[dict[bytes, Callable[[_Reader], None]]] = {
    b"\x80": lambda r: void(r._take(1)),
    b"\x95": lambda r: void(r._take(8)),
    b"(": lambda r: r._push(_MARK),
    b"N": lambda r: r._push(None),
    b"\x88": lambda r: r._push(True),
    b"\x89": lambda r: r._push(False),
    b"K": lambda r: r._push(r._number("<B")),
    b"M": lambda r: r._push(r._number("<H")),
    b"J": lambda r: r._push(r._number("<i")),
    b"\x8a": lambda r: r.long(),
    b"G": lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
    b"X": lambda r: r.text(r._number("<I")),
    b"\x8c": lambda r: r.text(r._number("<B")),
    b"U": lambda r: r.text(r._number("<B")),
    b"}": lambda r: r._push({}),
    b"]": lambda r: r._push([]),
    b")": lambda r: r._push(()),
    b"t": lambda r: r._push(tuple(r._since_mark())),
    b"\x85": lambda r: r._push((r._pop(),)),
    b"\x86": lambda r: r._push((r._pop(), r._pop())[::-1]),
    b"\x87": lambda r: r._push((r._pop(), r._pop(), r._pop())[::-1]),
    b"q": lambda r: r.put(r._number("<B")),
    b"r": lambda r: r.put(r._number("<I")),
    b"\x94": lambda r: r.put(len(r._memo)),
    b"h": lambda r: r._push(r._memo[r._number("<B")]),
    b"j": lambda r: r._push(r._memo[r._number("<I")]),
    b"s": lambda r: r.set_items([r._pop(), r._pop()][::-1]),
    b"u": lambda r: r.set_items(r._since_mark()),
    b"a": lambda r: r.append([r._pop()]),
    b"e": lambda r: r.append(r._since_mark()),
    b"c": lambda r: r.global_of(r.line(), r.line()),
    b"\x93": lambda r: r.stack_global(),
    b"Q": lambda r: r.storage(),
    b"R": lambda r: r.reduce(),
    b"b": lambda r: r.build(),
}
"""By opcode."""


def void(_: object) -> None:
    """For opcodes whose argument isn't needed: the protocol, the length of a frame."""
