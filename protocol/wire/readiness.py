"""A file that is there while a worker gets new work, for health checks of containers."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from protocol.errors import ConfigurationError

READY_FILE_SETTING = "PENSTOCK_READY_FILE"
MAX_AGE_S = 15.0
"""A worker touches its file with each heartbeat; one that did not for this long hangs."""

_logger = logging.getLogger("penstock.worker")


class ReadyFile:
    """Holds the process id of the worker that is ready; there while it is.

    Args:
        path: In a folder that exists; several workers need a file each.

    Raises:
        ConfigurationError: The file of an earlier life can't be removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_there = False
        self._is_failing = False
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{READY_FILE_SETTING}: cannot remove {path} ({error.strerror})."
            ) from error

    def set_ready(self, is_ready: bool) -> None:
        """Write or remove the file, where it is not so already."""
        if is_ready and not self._is_there:
            self._write()
        elif not is_ready and self._is_there:
            self._is_there = False
            with suppress(OSError):  # if it stays, it is old within seconds
                self._path.unlink(missing_ok=True)

    def touch(self) -> None:
        """Say that the process still beats; called with each heartbeat."""
        if self._is_there:
            try:
                os.utime(self._path)
            except OSError:
                self._write()

    def _write(self) -> None:
        """Write it whole or not at all; after an error the next heartbeat tries again."""
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            beside.write_text(f"{os.getpid()}\n", encoding="ascii")
            beside.replace(self._path)
            self._is_there = True
            self._is_failing = False
        except OSError as error:
            self._is_there = False
            if not self._is_failing:
                self._is_failing = True
                _logger.error("cannot write %s: %s", self._path, error.strerror)


def is_alive(process_id: int) -> bool:
    """Whether a process has this id, ours or another user's."""
    try:
        os.kill(process_id, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def why_not_ready(
    path: Path,
    *,
    wall_s: Callable[[], float] = time.time,
    is_alive: Callable[[int], bool] = is_alive,
) -> str | None:
    """Why the worker of a file is not ready, one sentence; None when it is."""
    try:
        age_s = wall_s() - path.stat().st_mtime
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return f"there is no {path}: no gateway gives this worker work"
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot read {path}: {error}"
    if not text.isdecimal() or int(text) == 0:
        return f"{path} names no process"
    if not is_alive(int(text)):
        return f"process {text} of {path} is gone"
    if abs(age_s) > MAX_AGE_S:
        return f"{path} was not touched for {age_s:.0f} s"
    return None
