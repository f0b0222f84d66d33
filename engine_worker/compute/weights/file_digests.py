"""What the files of a model hold, as one hash each: computed once for a file as it is.

A file is hashed whole, in pieces, by several threads, while its weights are read: a piece is hashed
when the first number of it is about to be read, so that the disk gives every byte once, and neither
side runs so far ahead that memory would have to forget what the other still needs. The hash is kept
beside the packed weights with the file's size, date and inode: while these are the same, no later
start reads the file for that.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

from engine_worker.errors import CheckpointError
from protocol.runtime.container_limits import num_usable_cores

FOLDER: Final = "digests"
_PIECE_BYTES: Final = 16 * 2**20
_READ_BYTES: Final = 2**20
_AHEAD: Final = 2
"""Pieces behind those that are wanted, which the disk reads while numbers are computed with."""
_MAX_WAITING: Final = 8
"""Pieces that wait to be hashed, beside one for each thread."""
_MAX_RECORD_BYTES: Final = 65536
_Key = tuple[str, int, int, int]
"""Path, size, date and inode."""
_known: dict[_Key, str] = {}
"""Of this process."""


@dataclass(slots=True)
class _File:
    """One file; `stream` is None where its hash is known."""

    key: _Key
    record: Path | None
    digest: str | None
    stream: IO[bytes] | None = None
    pieces: list[Future[bytes] | None] = field(default_factory=list)


class FileHashes:
    """The files of a model while they are read, and their hashes; for one thread.

    Args:
        files: Those that are read from now on; links count as what they point to.
        cache_dir: Where hashes are kept; None keeps them in this process only.

    Raises:
        CheckpointError: One can't be read.
    """

    def __init__(self, files: Sequence[Path], cache_dir: Path | None = None) -> None:
        self._threads = ThreadPoolExecutor(num_usable_cores(), "hash")
        self._waiting: deque[Future[bytes]] = deque()
        self._max_waiting = num_usable_cores() + _MAX_WAITING
        self._files: dict[Path, _File] = {}
        try:
            for file in files:
                self._files[file] = _opened(file, cache_dir)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def want(self, file: Path, start: int, end: int) -> None:
        """Says that some bytes are read next; returns at once unless much is waiting.

        Raises:
            CheckpointError: The file can't be read.
        """
        one = self._files.get(file)
        if one is not None and one.stream is not None and end > start:
            last = -(-end // _PIECE_BYTES) + _AHEAD
            self._begin(file, one, range(start // _PIECE_BYTES, min(last, len(one.pieces))))

    def finish(self, progress: Callable[[float, str], None]) -> None:
        """Hashes what nobody wanted, and makes sure that the files are those that were opened.

        Args:
            progress: Called where that takes time, with the share of a file and its name.

        Raises:
            CheckpointError: A file can't be read, or was changed meanwhile.
        """
        for file, one in self._files.items():
            if one.stream is not None:
                self._finish(file, one, progress)
        for file, one in self._files.items():
            try:
                is_same = _key_of(file) == one.key
            except OSError:
                is_same = False
            if not is_same:
                raise CheckpointError(
                    f"{file}: the model's files were changed while they were loaded; start again"
                    " when they are complete"
                )
        for one in self._files.values():
            assert one.digest is not None, "hashed above"
            _known[one.key] = one.digest
            if one.record is not None and one.stream is not None:
                _keep(one.record, one.key, one.digest)

    def digest(self, file: Path) -> str:
        """Of a file, after `finish`: SHA-256 of the SHA-256 of each 16 MiB, in hexadecimal."""
        digest = self._files[file].digest
        assert digest is not None, "finished"
        return digest

    def close(self) -> None:
        """Ends what is being hashed."""
        self._threads.shutdown(cancel_futures=True)
        for one in self._files.values():
            if one.stream is not None:
                one.stream.close()

    def _begin(self, file: Path, one: _File, pieces: range) -> None:
        assert one.stream is not None, "its hash isn't known"
        for index in pieces:
            if one.pieces[index] is not None:
                continue
            while len(self._waiting) >= self._max_waiting:
                _result(file, self._waiting.popleft())
            start = index * _PIECE_BYTES
            piece = self._threads.submit(_hash_of_piece, one.stream.fileno(), start)
            one.pieces[index] = piece
            self._waiting.append(piece)

    def _finish(self, file: Path, one: _File, progress: Callable[[float, str], None]) -> None:
        whole, num_pieces = hashlib.sha256(), len(one.pieces)
        for index in range(num_pieces):
            self._begin(file, one, range(index, min(index + self._max_waiting, num_pieces)))
            piece = one.pieces[index]
            assert piece is not None, "begun"
            takes_time = not piece.done()
            whole.update(_result(file, piece))
            if takes_time or index == num_pieces - 1:
                progress((index + 1) / num_pieces, file.name)
        one.digest = whole.hexdigest()


def _opened(file: Path, cache_dir: Path | None) -> _File:
    try:
        key = _key_of(file)
        record = None if cache_dir is None else _record_of(cache_dir, key[0])
        digest = _known.get(key)
        if digest is None and record is not None:
            digest = _read(record, key)
        if digest is not None:
            return _File(key, record, digest)
        num_pieces = -(-key[1] // _PIECE_BYTES)
        return _File(key, record, None, file.open("rb", buffering=0), [None] * num_pieces)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _key_of(file: Path) -> _Key:
    stat = file.stat()
    return os.fsdecode(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino


def _hash_of_piece(descriptor: int, start: int) -> bytes:
    # os.pread and hashlib let other threads run meanwhile; a mapping would end the process where
    # somebody cuts the file short.
    digest, end = hashlib.sha256(), start + _PIECE_BYTES
    while start < end and (data := os.pread(descriptor, min(_READ_BYTES, end - start), start)):
        digest.update(data)
        start += len(data)
    return digest.digest()


def _result(file: Path, piece: Future[bytes]) -> bytes:
    try:
        return piece.result()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _record_of(cache_dir: Path, path: str) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return cache_dir / FOLDER / f"{name}.json"


def _read(record: Path, key: _Key) -> str | None:
    """What was kept of a file, if it is still that file."""
    try:
        with record.open("rb") as stream:
            kept: Any = json.loads(stream.read(_MAX_RECORD_BYTES))
        digest = kept["digest"] if kept["file"] == list(key) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_digest = isinstance(digest, str) and len(digest) == hashlib.sha256().digest_size * 2
    return digest if is_digest else None


def _keep(record: Path, key: _Key, digest: str) -> None:
    """Only saves work: a folder that can't be written is no reason to stop."""
    unfinished = record.with_name(f"{record.name}.{os.getpid()}")
    with suppress(OSError, UnicodeError):
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"file": key, "digest": digest}), encoding="utf-8")
        unfinished.replace(record)
