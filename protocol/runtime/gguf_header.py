"""Reads what a GGUF file says it holds, and believes none of it before it is checked.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, two counts,
typed key/value pairs, one entry for each tensor, padding, data; all little-endian. Files come from
strangers: every count and length is held against the bytes that are there and a bound before
anything is made of it, so that memory stays a small multiple of the header. They are read by calls
and not mapped: where somebody cuts a mapped file short, the process ends.

Here, because the command line estimates a model's memory by it and engines load by it. It needs
nothing but the standard library.
"""

import array
import os
import re
import reprlib
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

SUFFIX: Final = ".gguf"
MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_HEADER_BYTES: Final = 128 * 2**20
"""Vocabularies of a quarter of a million tokens with their merges take 15 MiB."""
MAX_KEYS: Final = 2**14
MAX_TENSORS: Final = 2**17
MAX_STRINGS: Final = 2**21
"""Of all arrays together."""
MAX_NAME_BYTES: Final = 1024
MAX_TEXT_BYTES: Final = 64 * 2**20
"""The whole `tokenizer.json` of a quarter of a million tokens takes 33 MiB."""
MAX_AXES: Final = 4
MAX_VALUES: Final = 2**44
"""Numbers of a tensor; keeps products of sizes small."""
MAX_SHARDS: Final = 4096
_BUFFER_BYTES: Final = 2**18
_ALIGNMENT: Final = "general.alignment"
_DEFAULT_ALIGNMENT: Final = 32
_MAX_ALIGNMENT: Final = 2**20
_STRING, _ARRAY = 8, 9
_BOOL: Final = 7
_SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "B",
    10: "Q",
    11: "q",
    12: "d",
}
"""Codes of `struct` by GGUF's number of a type of metadata."""
_NO_MODELS: Final = ("mmproj", "imatrix")
_SHARD_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")

BLOCK_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Name, numbers and bytes of a block, by GGUF's number of a tensor's type."""


class GgufError(ValueError):
    """A file is no readable GGUF: names the file, what is wrong where, and the way out."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor.

    Attributes:
        shape: Outermost axis first, as everywhere but in the file.
        type_name: Of its blocks: `Q4_K`.
        start, end: Bytes in the file, from its beginning.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    type_name: str
    start: int
    end: int

    @property
    def num_values(self) -> int:
        """Numbers of the tensor."""
        return product(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file says.

    Attributes:
        metadata: Numbers, booleans, strings, `array.array`s of numbers and lists of strings.
        tensors: By name, in the order of the file.
        header_bytes: Where the data begin.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    header_bytes: int


def product(sizes: tuple[int, ...]) -> int:
    """Of some sizes, as a whole number of any length."""
    result = 1
    for size in sizes:
        result *= size
    return result


def read_gguf(path: Path) -> GgufFile:
    """Reads and checks the header of one file.

    Raises:
        GgufError: It can't be read, is cut off, broken, or of a kind that isn't read.
    """
    try:
        with path.open("rb", _BUFFER_BYTES) as stream:
            return _Reader(path, stream).read()
    except FileNotFoundError:
        raise GgufError(f"{path}: there is no such file") from None
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error}") from error


def read_gguf_shards(path: Path) -> tuple[GgufFile, ...]:
    """Reads a model that may be split into several files, all of them in one folder.

    Args:
        path: The only file, or any of `NAME-00001-of-0000N.gguf`.

    Returns:
        Every file in order; the metadata of the model stand in the first.

    Raises:
        GgufError: A file is missing or broken, or they don't belong together.
    """
    files = tuple(read_gguf(file) for file in shard_paths(path))
    seen: dict[str, Path] = {}
    for number, file in enumerate(files):
        stated = [file.metadata.get(f"split.{name}") for name in ("no", "count")]
        if stated not in ([number, len(files)], [None, None] if len(files) == 1 else None):
            raise GgufError(
                f"{file.path}: says that it is part {stated[0]} (counted from 0) of {stated[1]},"
                f" but its name says {number} of {len(files)}; download the model's files again"
            )
        for name in file.tensors:
            if name in seen:
                raise GgufError(f"{file.path}: tensor {name!r} is in {seen[name]} too")
            seen[name] = file.path
    wanted = files[0].metadata.get("split.tensors.count", len(seen))
    if wanted != len(seen):
        raise GgufError(
            f"{files[0].path}: says that there are {wanted} tensors, its files hold {len(seen)};"
            " download the model's files again"
        )
    return files


def shard_paths(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file belongs to, by their names.

    Raises:
        GgufError: One is missing.
    """
    names = shard_names(path.name)
    if path.name not in names:
        raise GgufError(f"{path}: the name counts parts that there can't be")
    paths = tuple(path.with_name(name) for name in names)
    for one in paths if len(paths) > 1 else ():
        if not one.is_file():
            raise GgufError(
                f"{path.parent}: {one.name} is missing, one of {len(names)} files of the model;"
                " download it into the same folder"
            )
    return paths


def shard_names(name: str) -> tuple[str, ...]:
    """All files of the model that a file belongs to; itself alone where its name counts none."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["count"]) <= MAX_SHARDS:
        return (name,)
    count = int(match["count"])
    return tuple(
        f"{match['stem']}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)
    )


def model_name(path: Path) -> str:
    """What a model is called if nobody says: its folder's name, its file's without the ending."""
    if path.suffix != SUFFIX:
        return path.name
    match = _SHARD_NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def models_in(folder: Path) -> tuple[Path, ...]:
    """The GGUF models of a folder; see `models_among`."""
    return tuple(folder / name for name in models_among(path.name for path in folder.iterdir()))


def models_among(names: Iterable[str]) -> tuple[str, ...]:
    """The models among some files, in order: of each split one only its first file.

    Vision towers (`mmproj…`) and importance matrices are no models.
    """
    found = []
    for name in sorted(names):
        file = name.rpartition("/")[2]
        is_model = file.endswith(SUFFIX) and not file.lower().startswith(_NO_MODELS)
        if is_model and shard_names(name)[0] == name:
            found.append(name)
    return tuple(found)


class _Reader:
    """One pass over a header; `_place` never passes the end of what may be read."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path = path
        self._stream = stream
        self._file_bytes = os.fstat(stream.fileno()).st_size
        self._limit = min(self._file_bytes, MAX_HEADER_BYTES)
        self._place = 0
        self._num_strings = 0

    def read(self) -> GgufFile:
        version, num_tensors, num_keys = self._opening()
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._name("the name of a key")
            if key in metadata:
                raise self._error(f"key {key!r} is there twice")
            metadata[key] = self._value(key)
        alignment = self._alignment(metadata)
        entries = {}
        for _ in range(num_tensors):
            name = self._name("the name of a tensor")
            if name in entries:
                raise self._error(f"tensor {name!r} is there twice")
            entries[name] = self._entry(name, alignment)
        start = -(-self._place // alignment) * alignment
        tensors = {name: self._placed(name, entry, start) for name, entry in entries.items()}
        self._refuse_overlaps(tensors)
        return GgufFile(self._path, version, metadata, tensors, min(start, self._file_bytes))

    def _opening(self) -> tuple[int, int, int]:
        if sys.byteorder != "little":
            raise self._error("is read on little-endian machines only")
        if self._stream.read(len(MAGIC)) != MAGIC:
            raise self._error("is no GGUF file: it doesn't begin with GGUF")
        self._place = len(MAGIC)
        (version,) = self._numbers("I", 1, "its version")
        if version not in VERSIONS:
            swapped = version and not version & 0xFFFF
            what = "is for big-endian machines" if swapped else f"is GGUF of version {version}"
            raise self._error(f"{what}; versions 2 and 3 are read: convert the model again")
        num_tensors, num_keys = self._numbers("Q", 2, "its counts")
        for count, most, least_bytes, what in (
            (num_tensors, MAX_TENSORS, 32, "tensors"),
            (num_keys, MAX_KEYS, 13, "keys"),
        ):
            fitting = (self._limit - self._place) // least_bytes
            if count > min(most, fitting):
                raise self._error(
                    f"is broken: says that it has {count} {what}, {min(most, fitting)} could be"
                )
        return version, num_tensors, num_keys

    def _value(self, key: str) -> Any:
        what = f"key {key!r}"
        (kind,) = self._numbers("I", 1, what)
        if kind in _SCALARS:
            (value,) = self._numbers(_SCALARS[kind], 1, what)
            return bool(value) if kind == _BOOL else value
        if kind == _STRING:
            return self._string(what, MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self._array(what)
        raise self._error(f"{what} is of type {kind}, which GGUF doesn't have")

    def _array(self, what: str) -> Any:
        (kind,) = self._numbers("I", 1, what)
        (count,) = self._numbers("Q", 1, what)
        if kind == _STRING:
            self._num_strings += min(count, MAX_STRINGS + 1)
            if self._num_strings > MAX_STRINGS or count > (self._limit - self._place) // 8:
                raise self._error(f"{what} is cut off, or holds too much: {count} strings")
            return [self._string(what, MAX_TEXT_BYTES) for _ in range(count)]
        if kind not in _SCALARS:
            inside = "arrays" if kind == _ARRAY else f"type {kind}"
            raise self._error(f"{what} is an array of {inside}, which isn't read")
        code = _SCALARS[kind]
        return array.array(code, self._bytes(count * struct.calcsize(f"<{code}"), what))

    def _entry(self, name: str, alignment: int) -> tuple[tuple[int, ...], int, int]:
        what = f"tensor {name!r}"
        (num_axes,) = self._numbers("I", 1, what)
        if not 1 <= num_axes <= MAX_AXES:
            raise self._error(f"{what} has {num_axes} axes; 1 to {MAX_AXES} are possible")
        shape = tuple(reversed(self._numbers("Q", num_axes, what)))
        kind, offset = *self._numbers("I", 1, what), *self._numbers("Q", 1, what)
        if not 0 < product(shape) <= MAX_VALUES:
            raise self._error(f"{what} has the shape {list(shape)}, which can't be")
        if kind not in BLOCK_TYPES:
            raise self._error(
                f"{what} is of type {kind}, which isn't known here; use another file of the model"
            )
        type_name, block, _ = BLOCK_TYPES[kind]
        if shape[-1] % block:
            raise self._error(f"{what}: rows of {shape[-1]} are no blocks of {type_name}")
        if offset % alignment:
            raise self._error(f"{what} begins at {offset}, no multiple of {alignment}")
        return shape, kind, offset

    def _placed(self, name: str, entry: tuple[tuple[int, ...], int, int], start: int) -> GgufTensor:
        shape, kind, offset = entry
        type_name, block, block_bytes = BLOCK_TYPES[kind]
        first = start + offset
        last = first + product(shape) // block * block_bytes
        if last > self._file_bytes:
            raise self._error(
                f"is cut off, or broken: tensor {name!r} needs {last} bytes of file, there are"
                f" {self._file_bytes}; download it again"
            )
        return GgufTensor(name, self._path, shape, type_name, first, last)

    def _refuse_overlaps(self, tensors: Mapping[str, GgufTensor]) -> None:
        before = None
        for tensor in sorted(tensors.values(), key=lambda one: one.start):
            if before is not None and tensor.start < before.end:
                raise self._error(f"tensors {before.name!r} and {tensor.name!r} overlap")
            before = tensor

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):
            shown = f"{reprlib.repr(value):.40}"
            raise self._error(f"{_ALIGNMENT} is {shown}, no power of two up to 2**20")
        return int(value)

    def _name(self, what: str) -> str:
        name = self._string(what, MAX_NAME_BYTES)
        if not name:
            raise self._error(f"is broken: {what} is empty")
        return name

    def _string(self, what: str, most: int) -> str:
        (size,) = self._numbers("Q", 1, what)
        if size > most:
            raise self._error(f"{what} has {size} bytes; at most {most} are read")
        try:
            return self._bytes(size, what).decode()
        except UnicodeDecodeError:
            raise self._error(f"{what} holds text that is no UTF-8") from None

    def _numbers(self, code: str, count: int, what: str) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        return struct.unpack(layout, self._bytes(struct.calcsize(layout), what))

    def _bytes(self, size: int, what: str) -> bytes:
        end = self._place + size
        if end > self._limit:
            if end <= self._file_bytes:
                raise self._error(f"has a header of more than {MAX_HEADER_BYTES} bytes")
            raise self._cut_off(what)
        found = self._stream.read(size)
        if len(found) < size:
            # Since its size was asked for.
            raise self._cut_off(what)
        self._place = end
        return found

    def _cut_off(self, what: str) -> GgufError:
        return self._error(f"is cut off, or broken, in {what}; download it again")

    def _error(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: {what}")
