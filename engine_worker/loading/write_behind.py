"""Writing that nobody waits for: in a thread of its own, behind everything else the disk does."""

import ctypes
import logging
import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

CANCEL_TIMEOUT_S: Final = 5.0
"""A disk may take that long for what it was given last."""
_SYSCALLS: Final = {"x86_64": 251, "aarch64": 30}
"""Of `ioprio_set`, which Python doesn't have."""
_PROCESS: Final = 1
_LAST_OF_BEST_EFFORT: Final = 2 << 13 | 7
"""Behind all other reads and writes, but never without its turn, as the idle class would be."""
_log = logging.getLogger("penstock.engine.weights")


class _CancelledError(Exception):
    """There is no time left for what is being written."""


class WriteBehind:
    """One thing that is written while the engine works."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._is_cancelled = threading.Event()

    def start(self, what: str, write: Callable[[Callable[[], None]], None]) -> None:
        """Begins to write; called once.

        Args:
            what: Is written, for the log.
            write: Writes; calls what it is given every few megabytes, which may raise to stop it.
        """
        assert self._thread is None, "one thing"
        # A script that ends waits for it; an engine cancels it before.
        self._thread = threading.Thread(target=self._run, args=(what, write), name="write-behind")
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False when it takes longer."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stops it, for a process that ends; what was written so far goes."""
        self._is_cancelled.set()
        self.wait(CANCEL_TIMEOUT_S)

    def _run(self, what: str, write: Callable[[Callable[[], None]], None]) -> None:
        _lower_priority()
        try:
            write(self._check)
        except _CancelledError:
            _log.info("%s: not written, because the engine stops", what)
        except Exception:  # noqa: BLE001 - it would only have saved time at the next start
            _log.exception("%s: not written", what)

    def _check(self) -> None:
        if self._is_cancelled.is_set():
            raise _CancelledError


def _lower_priority() -> None:
    """Has the disk serve others first.

    The processor doesn't: a thread that waits for its turn while it holds the interpreter's lock
    would hold up all others.
    """
    number = _SYSCALLS.get(platform.machine())
    if number is not None:
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.syscall(number, _PROCESS, threading.get_native_id(), _LAST_OF_BEST_EFFORT)
