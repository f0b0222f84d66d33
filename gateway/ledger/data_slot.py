"""Gives each gateway of a shared data folder its own folder, and hands on what a lost one left."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from gateway.ledger.journal import (
    BACKLOG_PATTERN,
    FILE_NAME,
    LOCK_NAME,
    next_backlog_path,
    sync_folder,
)
from protocol.errors import ConfigurationError

MAX_SLOTS = 256
_SLOT_LOCK = "slot.lock"
_logger = logging.getLogger("penstock.gateway")


class DataSlot:
    """A folder `gateway-N` of the shared data folder, ours until `close` or the process ends.

    The first free number is taken, so that a restarted gateway finds an outbox again. What free
    folders of gateways that are gone hold is moved here, as backlog files that the outbox reads
    page by page: a settlement must not wait for somebody to start that many gateways again, and
    their number must not matter. A name is moved, nothing is copied. So is the outbox of a gateway
    that had the data folder to itself.

    Args:
        shared: The data folder that several gateways were given; made if missing.

    Attributes:
        folder: Ours.

    Raises:
        ConfigurationError: The folder can't be used, or every number is taken.
    """

    def __init__(self, shared: Path) -> None:
        with _named_errors(shared):
            self.folder, self._lock = _claim(shared)
            try:
                _adopt(shared, self.folder)
            except BaseException:
                self._lock.close()
                raise

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()


def adopt_slots(folder: Path) -> None:
    """Move what gateways that shared a data folder left to one that has it to itself now.

    Args:
        folder: Its data folder, whose lock it has and whose backlog it has not read yet.

    Raises:
        OSError: A folder can't be used.
    """
    _adopt(folder, folder)


@contextmanager
def _named_errors(shared: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"PENSTOCK_DATA_DIR: cannot use {shared}: {error.strerror}."
        ) from error


def _claim(shared: Path) -> tuple[Path, TextIO]:
    for number in range(MAX_SLOTS):
        folder = shared / f"gateway-{number}"
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(shared)
        lock = _try_lock(folder, _SLOT_LOCK)
        if lock is not None:
            return folder, lock
    raise ConfigurationError(f"PENSTOCK_DATA_DIR: {MAX_SLOTS} gateways use {shared} already.")


def _adopt(shared: Path, own: Path) -> None:
    for folder in (shared, *sorted(shared.glob("gateway-*"))):
        if folder == own or not _left_in(folder):
            continue
        lock = _try_lock(folder, LOCK_NAME if folder == shared else _SLOT_LOCK)
        if lock is None:
            continue  # its gateway runs
        with lock:
            for path in _left_in(folder):
                path.rename(next_backlog_path(own))
                _logger.info("took over the outbox of a gateway that is gone, %s", path)
            # Where they are now first: a crash in between may leave both names, never none.
            _sync(own)
            _sync(folder)


def _left_in(folder: Path) -> list[Path]:
    """The files with settlements that a gateway left."""
    paths = [folder / FILE_NAME, *sorted(folder.glob(BACKLOG_PATTERN))]
    return [path for path in paths if path.is_file() and path.stat().st_size > 0]


def _try_lock(folder: Path, name: str) -> TextIO | None:
    lock = (folder / name).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _sync(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        sync_folder(folder)
    finally:
        os.close(folder)
