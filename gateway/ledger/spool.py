"""Keeps the file equal to what is not acknowledged, in batches, also when the disk was full."""

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.ledger.journal import Journal, acknowledged_line, settle_line
from protocol.wire.messages import Settle

_logger = logging.getLogger("penstock.gateway.outbox")

PROBE_AFTER_S = 5.0
"""How long a disk that was not written to is believed to be writable."""
COMPACT_AFTER_LINES = 10_000


class _Unwritten(NamedTuple):
    """One that the file lacks, and since when, in monotonic seconds."""

    settle: Settle
    since: float


class Spool:
    """What this process was given and what is not acknowledged, on its way to the file.

    Nothing is written before `write_out`: what is acknowledged sooner never touches the disk.

    Args:
        directory: Holds the file.
        clock: Monotonic seconds.

    Attributes:
        has_failed: The disk took nothing when it was tried last.

    Raises:
        ConfigurationError: The folder can't be used.
    """

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        self.has_failed = False
        self._clock = clock
        self._tried_at = clock()
        self._written: dict[str, Settle] = {}
        self._unwritten: dict[str, _Unwritten] = {}
        self._lines: list[bytes] = []
        self._journal = Journal(directory)

    def __len__(self) -> int:
        return len(self._written) + len(self._unwritten)

    @property
    def is_trial_due(self) -> bool:
        """Whether it is time to find out again whether the disk can be written to."""
        return self.has_failed or self._clock() - self._tried_at >= PROBE_AFTER_S

    def load(self) -> list[Settle]:
        """What the file holds, in order; it is rewritten without what is void.

        Raises:
            OSError: It can't be read or written.
        """
        settles = self._journal.load()
        self._journal.rewrite(settles)
        self._written = {settle.lease_id: settle for settle in settles}
        return settles

    def add(self, settle: Settle) -> None:
        """One more; it replaces another one of its lease, in the file by a later line."""
        self._written.pop(settle.lease_id, None)
        self._unwritten[settle.lease_id] = _Unwritten(settle, self._clock())

    @property
    def will_write(self) -> bool:
        """Whether something waits for its time to be written; a disk that fails is tried anyway."""
        return bool(self._unwritten) and not self.has_failed

    def acknowledge(self, lease_id: str) -> bool:
        """One less; whether the file has to be told."""
        self._unwritten.pop(lease_id, None)
        if self._written.pop(lease_id, None) is None:
            return False
        self._lines.append(acknowledged_line(lease_id))
        return True

    async def write_out(self, min_age_s: float = 0.0) -> bool:
        """Give the file what it lacks, in one fsynced write in a thread; else try the disk.

        One call at a time.

        Args:
            min_age_s: What came later than so long ago is left for another time.

        Returns:
            Whether something was written; False also when that failed.
        """
        latest = self._clock() - min_age_s
        batch = {
            lease_id: one.settle for lease_id, one in self._unwritten.items() if one.since <= latest
        }
        for lease_id in batch:
            del self._unwritten[lease_id]
        lines, self._lines = self._lines, []
        self._written |= batch
        try:
            was_tried = await self._write([*lines, *map(settle_line, batch.values())])
        except OSError as error:
            self._take_back(batch, lines)
            self._report(error)
            return False
        if was_tried:
            self._report(None)
        return bool(batch or lines)

    def close(self) -> None:
        """Let the file go; after the last `write_out`."""
        self._journal.close()

    async def _write(self, lines: list[bytes]) -> bool:
        """Have the file changed; whether that shows that the disk takes something."""
        journal = self._journal
        if lines and self._written:
            max_lines = COMPACT_AFTER_LINES + 2 * len(self._written)
            if journal.num_lines + len(lines) > max_lines and await asyncio.to_thread(
                journal.rewrite, list(self._written.values())
            ):
                return True
            await asyncio.to_thread(journal.append, lines)
            return True
        if lines:
            await asyncio.to_thread(journal.clear)  # cutting a file waits for its disk as well
        if not self.is_trial_due:
            return False
        await asyncio.to_thread(journal.probe)
        return True

    def _take_back(self, batch: dict[str, Settle], lines: list[bytes]) -> None:
        """A batch was not written; what was acknowledged meanwhile needs no place any more."""
        self._lines = lines + self._lines
        for lease_id, settle in batch.items():
            if self._written.get(lease_id) is settle:
                del self._written[lease_id]
                self._unwritten[lease_id] = _Unwritten(settle, -math.inf)

    def _report(self, error: OSError | None) -> None:
        """What a trial of the disk has shown; a change is logged."""
        self._tried_at = self._clock()
        if error is not None and not self.has_failed:
            _logger.error("cannot write the outbox %s: %s", self._journal.path, error.strerror)
        elif error is None and self.has_failed:
            _logger.info("the outbox %s can be written again", self._journal.path)
        self.has_failed = error is not None
