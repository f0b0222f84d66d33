"""Small files that only their owner reads, written wholly or not at all, and durably."""

import errno
import os
from pathlib import Path

from auth_worker.errors import StoreError, StoreUnavailableError

_PASSING = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)
"""Why a file can't be written now, although it may be possible later."""


def write_durably(path: Path, text: str) -> None:
    """Write a file with mode 0600.

    Raises:
        StoreUnavailableError: The disk is full or failing.
        StoreError: It can't be written there.
    """
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise unusable(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder with mode 0700 where it is missing.

    Raises:
        StoreUnavailableError: The disk is full or failing.
        StoreError: It can't be made there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: OSError) -> StoreError:
    """What to raise when a file or folder can't be used."""
    kind = StoreUnavailableError if error.errno in _PASSING else StoreError
    return kind(f"{path} can't be used: {error.strerror}.")
