"""Records what the engine does for some seconds, as a trace of jax's profiler.

The trace opens in Perfetto (https://ui.perfetto.dev) or xprof: see https://docs.jax.dev/en/latest/profiling.html.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from engine_worker.errors import InvalidRequestError, ProfileError

MAX_DURATION_S: Final = 60.0
"""A trace grows by megabytes a second."""


class Profiler:
    """One recording at a time; `record` is called in a thread that may wait.

    Args:
        directory: Recordings go into folders below it.
        sleep: Waits some seconds.
    """

    def __init__(self, directory: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._directory = directory
        self._sleep = sleep
        self._busy = threading.Lock()

    def record(self, duration_s: float) -> tuple[Path, int]:
        """Record for so long.

        Args:
            duration_s: Above 0, at most `MAX_DURATION_S`.

        Returns:
            The folder of the recording, and its size in bytes.

        Raises:
            InvalidRequestError: The time is out of range.
            ProfileError: Another recording runs, or the folder can't be written.
        """
        import jax

        if not 0 < duration_s <= MAX_DURATION_S:
            raise InvalidRequestError(
                f"'seconds' must be above 0 and at most {MAX_DURATION_S:g}, not {duration_s}.",
                param="seconds",
            )
        if not self._busy.acquire(blocking=False):
            raise ProfileError("Another profile is being recorded; try again when it is done.")
        try:
            folder = self._directory / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
            try:
                folder.mkdir(mode=0o700, parents=True)
            except OSError as error:
                raise ProfileError(f"{folder} can't be made: {error.strerror}.") from error
            with jax.profiler.trace(str(folder)):
                self._sleep(duration_s)
            files = [path for path in folder.rglob("*") if path.is_file()]
            return folder, sum(path.stat().st_size for path in files)
        finally:
            self._busy.release()
