"""Files and batches of one gateway, put together."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from gateway.batches.files import FileBounds, FileStore
from gateway.batches.line_room import Ask, NumFree
from gateway.batches.runner import BatchRunner
from gateway.batches.store import BatchStore
from gateway.housekeeping import logs_failure
from protocol.wire.messages import Settle


class BatchService:
    """The files, the batches, and who works on them.

    Args:
        data_dir: Of the gateway; gateways that share it share files and batches.
        bounds: Of each tenant.
        ask: Has a line answered.
        settle: Puts a settlement into the outbox.
        num_free: Of a model, see `NumFree`.
        max_lines: Lines under way at a time.
        max_line_bytes: Of one line.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        data_dir: Path,
        bounds: FileBounds,
        *,
        ask: Ask,
        settle: Callable[[Settle], None],
        num_free: NumFree,
        max_lines: int,
        max_line_bytes: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.files = FileStore(data_dir / "files", bounds, wall_clock)
        self.store = BatchStore(data_dir / "batches", self.files, bounds.max_age_s, wall_clock)
        self.runner = BatchRunner(
            self.store,
            self.files,
            ask=ask,
            settle=settle,
            num_free=num_free,
            max_lines=max_lines,
            max_line_bytes=max_line_bytes,
            wall_clock=wall_clock,
        )

    def look(self) -> "asyncio.Future[None] | None":
        """Take batches that nobody works on; see `BatchRunner.look`."""
        return self.runner.look()

    def sweep(self) -> "asyncio.Future[None]":
        """Remove what is too old; the future is done when that is."""
        sweeping = asyncio.get_running_loop().create_task(self.runner.threads.run(self._sweep))
        sweeping.add_done_callback(logs_failure("sweeping files and batches"))
        return sweeping

    def _sweep(self) -> None:
        self.files.sweep()
        self.store.sweep()
