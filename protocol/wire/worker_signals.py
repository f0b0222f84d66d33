"""Brings SIGTERM and SIGINT to a worker's I/O thread even while its main thread is busy."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalPipe:
    """Signal numbers as bytes in a pipe.

    Python runs signal handlers only between two bytecodes of the main thread, which may sit in a
    compiler for half a minute. The interpreter's C handler however writes each signal's number to
    the wake-up descriptor at once (`signal.set_wakeup_fd`), and the I/O thread reads it there.
    """

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._old_wakeup_fd = -1

    @staticmethod
    def is_possible() -> bool:
        """Whether this thread may install signal handlers."""
        return threading.current_thread() is threading.main_thread()

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; in the main thread only."""
        self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._old_handlers[number] = signal.signal(number, _ignore)

    def attach(self, loop: asyncio.AbstractEventLoop, on_signal: Callable[[int], None]) -> None:
        """Call back in this loop for each SIGTERM and SIGINT; in the loop's thread."""

        def read() -> None:
            for number in os.read(self._read_fd, 64):
                if number in _SIGNALS:
                    on_signal(number)

        loop.add_reader(self._read_fd, read)

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call back no more; in the loop's thread."""
        loop.remove_reader(self._read_fd)

    def restore(self) -> None:
        """Give the signals back to who had them; in the main thread, after `detach`."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Does nothing: the byte in the pipe does it."""
