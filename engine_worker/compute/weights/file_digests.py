"""What the files of a model hold, as one hash each: computed once for a file as it is.

A file is hashed whole, by several threads, and its hash is kept beside the packed weights with the
file's size, date and inode: while these are the same, no later start reads it for that.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from engine_worker.errors import CheckpointError
from protocol.runtime.container_limits import num_usable_cores

FOLDER: Final = "digests"
_PIECE_BYTES: Final = 16 * 2**20
_MAX_RECORD_BYTES: Final = 65536
_known: dict[tuple[str, int, int, int], str] = {}
"""Of this process: by path, size, date and inode."""


def digest_of(
    file: Path, cache_dir: Path | None = None, progress: Callable[[float], None] | None = None
) -> str:
    """A hash of all bytes of a file.

    Args:
        file: Of a model; a link counts as what it points to.
        cache_dir: Where hashes are kept; None keeps them in this process only.
        progress: Called while it is hashed, with the share that is done.

    Returns:
        64 hexadecimal digits: SHA-256 of the SHA-256 of each 16 MiB.

    Raises:
        CheckpointError: It can't be read.
    """
    try:
        stat = file.stat()
        key = (os.fsdecode(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key not in _known:
            record = None if cache_dir is None else _record_of(cache_dir, key[0])
            digest = None if record is None else _read(record, key)
            if digest is None:
                digest = _hashed(file, stat.st_size, progress or (lambda _: None))
                if record is not None:
                    _keep(record, key, digest)
            _known[key] = digest
        return _known[key]
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _hashed(file: Path, size: int, progress: Callable[[float], None]) -> str:
    def piece(start: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(_PIECE_BYTES)).digest()

    whole = hashlib.sha256()
    # hashlib lets other threads run while it computes.
    with ThreadPoolExecutor(num_usable_cores(), "hash") as threads:
        for index, digest in enumerate(threads.map(piece, range(0, size, _PIECE_BYTES))):
            whole.update(digest)
            progress(min(1.0, (index + 1) * _PIECE_BYTES / size))
    return whole.hexdigest()


def _record_of(cache_dir: Path, path: str) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return cache_dir / FOLDER / f"{name}.json"


def _read(record: Path, key: tuple[str, int, int, int]) -> str | None:
    """What was kept of a file, if it is still that file."""
    try:
        with record.open("rb") as stream:
            kept: Any = json.loads(stream.read(_MAX_RECORD_BYTES))
        digest = kept["digest"] if kept["file"] == list(key) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_digest = isinstance(digest, str) and len(digest) == hashlib.sha256().digest_size * 2
    return digest if is_digest else None


def _keep(record: Path, key: tuple[str, int, int, int], digest: str) -> None:
    """Only saves work: a folder that can't be written is no reason to stop."""
    unfinished = record.with_name(f"{record.name}.{os.getpid()}")
    with suppress(OSError, UnicodeError):
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"file": key, "digest": digest}), encoding="utf-8")
        unfinished.replace(record)
