"""The outbox's file: one JSON object a line, appended and fsynced, rewritten when mostly void."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import msgspec
import orjson

from protocol.errors import ConfigurationError
from protocol.wire.messages import Settle

_logger = logging.getLogger("penstock.gateway.outbox")

FILE_NAME = "gateway-outbox.jsonl"
LOCK_NAME = f"{FILE_NAME}.lock"
BACKLOG_NAME = "gateway-outbox.backlog-{:06d}.jsonl"
BACKLOG_PATTERN = "gateway-outbox.backlog-*.jsonl"
PAGE_BYTES = 1 << 20
"""A file up to this size, about 4,000 settlements, is held in memory; a longer one is read page by
page (`backlog.py`)."""
_PROBE_BYTES = 4096
_LINES_A_WRITE = 1024


def settle_line(settle: Settle) -> bytes:
    """A settlement as a line of the file."""
    fields = {name: getattr(settle, name) for name in Settle.__struct_fields__}
    return orjson.dumps({"settle": fields}) + b"\n"


def acknowledged_line(lease_id: str) -> bytes:
    """The news that a settlement written before is durable at the auth worker."""
    return orjson.dumps({"acknowledged": lease_id}) + b"\n"


def parse_line(line: bytes) -> Settle | str | None:
    """A settlement, or the lease that was acknowledged; None for a line that is neither.

    Fields that the line lacks have their default, unknown fields are ignored, so
    that versions can follow each other in both directions.
    """
    try:
        value = orjson.loads(line)
        if "acknowledged" in value:
            return msgspec.convert(value["acknowledged"], str)
        return msgspec.convert(value["settle"], Settle)
    except (ValueError, TypeError, KeyError):
        return None


class Journal:
    """Owns a folder and the file in it, which stays open: a write needs no free descriptor.

    A file above `PAGE_BYTES` that an earlier process left is renamed to the folder's next backlog
    file. The folder is fsynced whenever a name in it changed.

    Args:
        directory: Made if missing; one process at a time.

    Attributes:
        num_lines: In the file.

    Raises:
        ConfigurationError: The folder can't be used, or another gateway holds it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self.num_lines = 0
        self._directory = directory
        self._is_torn = True  # what an earlier process left may end in half a line
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(_lock_directory(directory))
            try:
                self._open_files(stack)
            except OSError as error:
                raise ConfigurationError(
                    f"PENSTOCK_DATA_DIR: cannot use {self.path}: {error.strerror}."
                ) from error
            stack.pop_all()

    def _open_files(self, stack: contextlib.ExitStack) -> None:
        self._folder = os.open(self._directory, os.O_RDONLY)
        stack.callback(os.close, self._folder)
        if self.path.exists() and self.path.stat().st_size > PAGE_BYTES:
            self.path.rename(next_backlog_path(self._directory))
        probe_path = self._directory / f"{FILE_NAME}.probe"
        self._probe = os.open(probe_path, os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, self._probe)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        stack.callback(os.close, self._file)
        sync_folder(self._folder)

    def close(self) -> None:
        """Let everything go; called once."""
        for descriptor in (self._file, self._probe, self._folder):
            os.close(descriptor)
        self._lock.close()

    def load(self) -> list[Settle]:
        """What the file holds that is not acknowledged, in order; at most one page of it.

        Raises:
            OSError: It can't be read.
        """
        settles: dict[str, Settle] = {}
        num_damaged = 0
        for line in self.path.read_bytes().splitlines():
            found = parse_line(line)
            self.num_lines += 1
            if isinstance(found, Settle):
                settles[found.lease_id] = found
            elif found is not None:
                settles.pop(found, None)
            elif line:
                # Also the half line of a crash while it was written, which was never relied on.
                num_damaged += 1
        warn_of_damage(self.path, num_damaged)
        return list(settles.values())

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines, in one fsynced write.

        Raises:
            OSError: The disk takes nothing; half a line may have been left.
        """
        # A failed write may have left half a line, which the next one must not go on from.
        data = b"".join((b"\n", *lines) if self._is_torn else lines)
        self._is_torn = True
        _write_all(self._file, data)
        os.fsync(self._file)
        self._is_torn = False
        self.num_lines += len(lines)

    def rewrite(self, settles: Iterable[Settle]) -> bool:
        """Replace the file by one that holds only these.

        Returns:
            False when there is no free descriptor for it; then the file is as it was.

        Raises:
            OSError: The disk takes nothing; the file is as it was.
        """
        fresh_path = self.path.with_suffix(".new")
        try:
            fresh = os.open(fresh_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return False
            raise
        try:
            num_lines = 0
            lines = map(settle_line, settles)
            while chunk := list(islice(lines, _LINES_A_WRITE)):
                _write_all(fresh, b"".join(chunk))
                num_lines += len(chunk)
            os.fsync(fresh)
            fresh_path.replace(self.path)
        except BaseException:
            os.close(fresh)
            fresh_path.unlink(missing_ok=True)
            raise
        fresh, self._file = self._file, fresh
        os.close(fresh)
        self.num_lines = num_lines
        self._is_torn = False
        sync_folder(self._folder)
        return True

    def clear(self) -> None:
        """Nothing in the file counts any more: cut it to nothing, which works on a full disk too.

        Raises:
            OSError: It can't be.
        """
        os.ftruncate(self._file, 0)
        self.num_lines = 0
        self._is_torn = False

    def probe(self) -> None:
        """Find out whether the disk takes a block more, without leaving one behind.

        Raises:
            OSError: It doesn't.
        """
        try:
            if os.pwrite(self._probe, bytes(_PROBE_BYTES), 0) < _PROBE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._probe)
        finally:
            os.ftruncate(self._probe, 0)


def next_backlog_path(directory: Path) -> Path:
    """The name of one more backlog file of a folder, behind those there are."""
    taken = sorted(directory.glob(BACKLOG_PATTERN))
    last = -1 if not taken else int(taken[-1].stem.rpartition("-")[2])
    return directory / BACKLOG_NAME.format(last + 1)


def sync_folder(folder: int) -> None:
    """Make names in a folder durable, where its file system can.

    Args:
        folder: Its descriptor.

    Raises:
        OSError: The disk is at fault.
    """
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def warn_of_damage(path: Path, num_damaged: int) -> None:
    """Log lines that were neither a settlement nor an acknowledgement, if there were any."""
    if num_damaged:
        _logger.warning("%d lines of the outbox %s are damaged and skipped", num_damaged, path)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _lock_directory(directory: Path) -> TextIO:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / LOCK_NAME).open("w")
    except OSError as error:
        raise ConfigurationError(
            f"PENSTOCK_DATA_DIR: cannot write to {directory}: {error.strerror}."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigurationError(
            f"PENSTOCK_DATA_DIR: another gateway uses {directory}; give each its own folder."
        ) from error
    return lock
