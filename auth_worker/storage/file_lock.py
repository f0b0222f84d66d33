"""The lock that keeps a second auth worker away from a database."""

import fcntl
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from auth_worker.errors import StoreLockedError

_POLL_S: Final = 0.05

_logger = logging.getLogger("penstock.auth")


def take_lock(
    path: Path,
    patience_s: float = 0.0,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Hold an exclusive lock on a file; the kernel releases it when the process ends.

    Args:
        path: The file; made when it is missing. It holds the process id of its holder.
        patience_s: How long to wait for the holder's end: a worker whose parent was killed may
            still be about to end when the next one starts.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.

    Returns:
        The descriptor that holds the lock.

    Raises:
        StoreLockedError: Another auth worker still holds it.
        OSError: The file can't be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends_at = clock() + patience_s
    is_told = False
    while not _is_locked(fd):
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        if clock() >= ends_at:
            os.close(fd)
            raise StoreLockedError(
                f"Another auth worker (process {holder}) holds {path.parent}; "
                "SQLite supports only one."
                " Stop it, or give this one a data directory of its own (PENSTOCK_DATA_DIR)."
            )
        if not is_told:
            is_told = True
            _logger.warning(
                "another auth worker (process %s) holds %s; waiting up to %.0f s for it to stop",
                holder,
                path.parent,
                patience_s,
            )
        sleep(_POLL_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _is_locked(fd: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
