"""Gives each gateway of one shared data folder a folder of its own, and hands on what a lost one left."""

import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import BinaryIO, TextIO

from gateway.ledger.outbox import FILE_NAME
from protocol.errors import ConfigurationError

MAX_SLOTS = 256
_SLOT_LOCK = "slot.lock"
_logger = logging.getLogger("penstock.gateway")


class DataSlot:
    """A folder `gateway-N` of the shared data folder, ours until `close` or the process ends.

    The first free number is taken, so that a restarted gateway finds an outbox again. What free
    folders of gateways that are gone hold is moved here: a settlement must not wait for somebody
    to start that many gateways again. A crash in between leaves a settlement twice, and the auth
    worker books it once.

    Args:
        shared: The data folder that several gateways were given; made if missing.

    Attributes:
        folder: Ours.

    Raises:
        ConfigurationError: The folder can't be used, or every number is taken.
    """

    def __init__(self, shared: Path) -> None:
        try:
            self.folder, self._lock = _claim(shared)
            _adopt(shared, self.folder)
        except OSError as error:
            raise ConfigurationError(
                f"PENSTOCK_DATA_DIR: cannot use {shared}: {error.strerror}."
            ) from error

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()


def _claim(shared: Path) -> tuple[Path, TextIO]:
    for number in range(MAX_SLOTS):
        folder = shared / f"gateway-{number}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _try_lock(folder)
        if lock is not None:
            return folder, lock
    raise ConfigurationError(f"PENSTOCK_DATA_DIR: {MAX_SLOTS} gateways use {shared} already.")


def _adopt(shared: Path, own: Path) -> None:
    for folder in sorted(shared.glob("gateway-*")):
        left = folder / FILE_NAME
        if folder == own or not left.is_file() or left.stat().st_size == 0:
            continue
        lock = _try_lock(folder)
        if lock is None:
            continue
        with lock:
            with left.open("rb") as source, (own / FILE_NAME).open("a+b") as target:
                _end_line(target)
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
            left.unlink()
        _logger.info("took over the outbox of a gateway that is gone, %s", left)


def _end_line(file: BinaryIO) -> None:
    """A crash may have left half a line at the end of ours, which the next must not go on from."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.write(b"\n")


def _try_lock(folder: Path) -> TextIO | None:
    lock = (folder / _SLOT_LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
