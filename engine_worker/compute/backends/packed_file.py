"""A file of packed weights: written once, read at every later start.

    16 bytes magic, 8 bytes length of the header (little endian), the header in JSON
    {"key": …, "size_bytes": …, "parts": [{"shape": […], "dtype": "uint8", "offset": …}, …]},
    32 bytes SHA-256 of all before, then the parts, each at a multiple of 64 bytes from the start,
    and behind the last one 32 bytes SHA-256 of the sums of their 4 KiB pieces (in 64-bit words).

Sums find damage at the speed of memory, where a hash of every byte would take longer than to load
the model; they are no protection from people who may write to the folder, whose weights these are.

A file is written under another name, whose lock its writer holds, so that nobody else writes the
same one and the next start can tell what a process that was killed has left. The header comes last,
when all other bytes are on the disk, and then the file gets its name: whatever happens before, no
start takes it for a file. One that was cut short, whose numbers aren't those that were written,
that another version wrote or that belongs to other weights is refused with its reason, and made
again.
"""

import fcntl
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Protocol

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.packing_plan import PartSpec
from engine_worker.compute.memory.host_memory import ALIGNMENT, DeviceArrays
from engine_worker.errors import PackedFileBusyError, PackedFileError

_MAGIC: Final = b"PENSTOCK PACKED2"
_LENGTH_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
_MAX_HEADER_BYTES: Final = 16 * 2**20
_PIECE_BYTES: Final = 4096
_WORD_BYTES: Final = 8
_KEY_CHARACTERS: Final = 64
_READ_BYTES: Final = 2**20
"""At a time; a multiple of `_PIECE_BYTES`."""
_WRITTEN_BYTES: Final = 4 * 2**20
"""At a time; a multiple of `_PIECE_BYTES`."""
_SYNCED_BYTES: Final = 32 * 2**20
UNFINISHED: Final = ".new"
"""End of a file's name until it is finished."""


def read_packed(path: Path, key: str, parts: Sequence[PartSpec]) -> tuple[jax.Array, ...]:
    """The parts of a file on the default device, read once into memory of their own.

    They aren't mapped: pages of a file are small, which makes steps up to several times as slow
    (see `HostArena`), and a file that is cut while it is mapped ends the process.

    Args:
        path: The file.
        key: What it has to be of.
        parts: What it has to hold.

    Raises:
        FileNotFoundError: There is none.
        PackedFileError: It is not what it has to be; one line that says why.
        OSError: It can't be read now.
        ModelMemoryError: There is no memory for it.
    """
    with path.open("rb") as stream:
        try:
            header = _read_header(stream)
            _check(header, os.fstat(stream.fileno()).st_size, key, parts)
        except (ValueError, KeyError, TypeError) as error:
            raise PackedFileError(f"{path}: {error}") from error
        arrays = DeviceArrays(parts)
        try:
            return _read_parts(stream, header, parts, arrays)
        except ValueError as error:
            raise PackedFileError(f"{path}: {error}") from error


def _read_parts(
    stream: IO[bytes], header: dict[str, Any], parts: Sequence[PartSpec], arrays: DeviceArrays
) -> tuple[jax.Array, ...]:
    digest = hashlib.sha256()

    def read(array: npt.NDArray[Any]) -> None:
        octets = array.reshape(-1).view(np.uint8)
        for start in range(0, len(octets), _READ_BYTES):
            piece = octets[start : start + _READ_BYTES]
            if stream.readinto(piece.data) != len(piece):  # type: ignore[attr-defined]
                raise ValueError("it was cut short while it was read")
            # While it is still in the processor's cache.
            _add_sums(digest, piece)

    found = []
    for entry in header["parts"]:
        stream.seek(entry["offset"])
        found.append(arrays.fill(read))
    stream.seek(_end_of(header, parts))
    if stream.read(_DIGEST_BYTES) != digest.digest():
        raise ValueError("damaged: its numbers are not those that were written")
    return tuple(found)


class PackedFileWriter:
    """Writes a file part by part; made by `new_packed_file`."""

    def __init__(
        self,
        stream: IO[bytes],
        place: Path,
        parts: Sequence[PartSpec],
        on_piece: Callable[[], None] | None,
    ) -> None:
        self._stream, self._place, self._on_piece = stream, place, on_piece
        self._all_parts = tuple(parts)
        self._parts = iter(self._all_parts)
        # Of nothing that could be read, until everything behind it is there.
        header, offsets = _header("", parts)
        self._offsets = iter(offsets)
        self._digest = hashlib.sha256()
        self._num_unsynced = 0
        stream.write(bytes(len(header)))

    def write(self, array: npt.NDArray[Any]) -> None:
        """The next part."""
        part, offset = next(self._parts), next(self._offsets)
        assert (array.shape, array.dtype) == (part.shape, part.dtype), (array.shape, part)
        self._stream.write(bytes(offset - self._stream.tell()))
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(octets), _WRITTEN_BYTES):
            piece = octets[start : start + _WRITTEN_BYTES]
            if self._on_piece is not None:
                self._on_piece()
            self._stream.write(piece.data)
            _add_sums(self._digest, piece)
            self._num_unsynced += len(piece)
            if self._on_piece is not None and self._num_unsynced >= _SYNCED_BYTES:
                self._forget()

    def finish(self, path: Path, key: str) -> None:
        """Writes what stands behind the last part and before the first; the file is there then.

        Args:
            path: The file; one that is there is replaced.
            key: What it is of, in at most 64 characters.
        """
        assert next(self._parts, None) is None, "a part was not written"
        self._stream.write(self._digest.digest())
        self._sync()
        self._stream.seek(0)
        self._stream.write(_header(key, self._all_parts)[0])
        # Else a machine that loses power might keep the name and not the numbers.
        self._sync()
        self._place.replace(path)

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _forget(self) -> None:
        """Has the kernel write and drop what it holds of the file, which is in memory already."""
        self._sync()
        # Not every system has it.
        with suppress(OSError, AttributeError):
            os.posix_fadvise(self._stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._num_unsynced = 0


@contextmanager
def new_packed_file(
    unfinished: Path, parts: Sequence[PartSpec], on_piece: Callable[[], None] | None = None
) -> Iterator[PackedFileWriter]:
    """A file that is there once it is finished; what isn't when the block ends never was.

    Args:
        unfinished: Its name until then; in the folder of the file.
        parts: What it holds.
        on_piece: For a file of which nothing is read soon, so that not more than some megabytes of
            it stay in memory. Called before each piece is written; may raise to stop.

    Raises:
        PackedFileBusyError: Another process writes it.
        OSError: It can't be written.
    """
    unfinished.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stream, place = _opened(unfinished)
    with stream:
        try:
            yield PackedFileWriter(stream, place, parts, on_piece)
        finally:
            # Under its own name it is no longer here; while it is locked nobody else's is.
            with suppress(OSError):
                if _is_at(stream, place):
                    place.unlink()


def _opened(place: Path) -> tuple[IO[bytes], Path]:
    """A new file that nobody else writes, and where it is."""
    while True:
        stream = os.fdopen(os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been finished or removed between the two calls, and is another's then.
            if _is_at(stream, place):
                stream.truncate()
                return stream, place
        except BlockingIOError as error:
            stream.close()
            raise PackedFileBusyError(f"{place}: another process writes it") from error
        except OSError:
            # Where there are no locks every writer has a name of its own.
            stream.close()
            own = place.with_suffix(f".{secrets.token_hex(8)}{UNFINISHED}")
            with suppress(OSError):
                place.unlink()
            return own.open("x+b"), own
        stream.close()


def _is_at(stream: IO[bytes], place: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), place.stat())
    except FileNotFoundError:
        return False


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _add_sums(digest: _Hash, array: npt.NDArray[Any]) -> None:
    """Adds the sums of an array's pieces; of one part after the other they are those of all."""
    octets = array.reshape(-1).view(np.uint8)
    whole = len(octets) // _PIECE_BYTES * _PIECE_BYTES
    pieces = octets[:whole].view(np.uint64).reshape(-1, _PIECE_BYTES // _WORD_BYTES)
    digest.update(pieces.sum(axis=1, dtype=np.uint64).tobytes())
    digest.update(octets[whole:].tobytes())


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Removes unfinished files whose writer is gone; each may be as large as a model.

    Args:
        folder: Of the files; may not exist.
        prefix: Of their names.
    """
    for file in folder.glob(f"{glob.escape(prefix)}*{UNFINISHED}"):
        with suppress(OSError), file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(stream, file):
                file.unlink()


def _header(key: str, parts: Sequence[PartSpec]) -> tuple[bytes, list[int]]:
    """All bytes before the parts, and where these lie; key and offsets make it no longer."""
    reserved = len(_render("0" * _KEY_CHARACTERS, parts, [2**53] * len(parts)))
    start = len(_MAGIC) + _LENGTH_BYTES + reserved + _DIGEST_BYTES
    offsets = []
    for part in parts:
        start = -(-start // ALIGNMENT) * ALIGNMENT
        offsets.append(start)
        start += part.size_bytes
    text = _render(key, parts, offsets).ljust(reserved)
    before = _MAGIC + len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return before + hashlib.sha256(before).digest(), offsets


def _render(key: str, parts: Sequence[PartSpec], offsets: Sequence[int]) -> bytes:
    entries = [
        {"shape": part.shape, "dtype": str(part.dtype), "offset": offset}
        for part, offset in zip(parts, offsets, strict=True)
    ]
    return json.dumps({"key": key, "parts": entries}).encode()


def _read_header(stream: IO[bytes]) -> dict[str, Any]:
    start = stream.read(len(_MAGIC) + _LENGTH_BYTES)
    if not start.startswith(_MAGIC):
        raise ValueError("not a file of packed weights, or of another version")
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError("its header is broken")
    text, digest = stream.read(length), stream.read(_DIGEST_BYTES)
    if hashlib.sha256(start + text).digest() != digest:
        raise ValueError("its header is broken")
    header: dict[str, Any] = json.loads(text)
    return header


def _check(header: dict[str, Any], actual_bytes: int, key: str, parts: Sequence[PartSpec]) -> None:
    if header["key"] != key:
        raise ValueError("it was made of other weights or by another version")
    held = [(tuple(entry["shape"]), entry["dtype"]) for entry in header["parts"]]
    if held != [(part.shape, str(part.dtype)) for part in parts]:
        raise ValueError("it holds other arrays than this decoder has")
    needed = _end_of(header, parts) + _DIGEST_BYTES
    if actual_bytes < needed:
        raise ValueError(f"cut short: it has {actual_bytes} bytes and needs {needed}")


def _end_of(header: dict[str, Any], parts: Sequence[PartSpec]) -> int:
    """Where the last part ends."""
    offsets = [entry["offset"] for entry in header["parts"]]
    return max(
        (offset + part.size_bytes for offset, part in zip(offsets, parts, strict=True)), default=0
    )
