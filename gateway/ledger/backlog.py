"""Settlements of earlier processes that are too many for memory: files read a page at a time."""

import os
from dataclasses import dataclass
from pathlib import Path

from gateway.ledger.journal import BACKLOG_PATTERN, PAGE_BYTES, parse_line, warn_of_damage
from protocol.wire.messages import Settle

_MAX_LINE_BYTES = 1 << 16
_SETTLE_START = b'{"settle"'
_ACKNOWLEDGED_START = b'{"acknowledged"'


@dataclass(slots=True)
class _Page:
    """What was read last: the file's end from `start` on."""

    path: Path
    start: int


class Backlog:
    """The backlog files of a folder, each read from its end and cut off there once that is booked.

    Read from the end, an acknowledgement is seen before its settlement, and what is done can be
    cut off without room on the disk. A page that is read but not dropped is read again by the
    next process: its settlements are sent twice, and booked once.

    Args:
        directory: Its files are counted through at once, a line at a time.

    Raises:
        OSError: A file can't be read.
    """

    def __init__(self, directory: Path) -> None:
        self._paths = sorted(directory.glob(BACKLOG_PATTERN), reverse=True)
        self._acknowledged: set[str] = set()
        self._page: _Page | None = None
        self._num_left = sum(_count(path) for path in self._paths)

    def __len__(self) -> int:
        """Settlements that no page has brought yet; a damaged line may count as one."""
        return max(0, self._num_left - len(self._acknowledged))

    @property
    def is_done(self) -> bool:
        """Whether there is no file any more."""
        return not self._paths

    def turn(self) -> list[Settle]:
        """Drop the page that was read last, all of which is booked, and read the next one.

        Returns:
            Settlements that are not known to be acknowledged; none when everything is done.

        Raises:
            OSError: A file can't be read or cut; the next call tries again.
        """
        while True:
            self._drop()
            if not self._paths:
                return []
            settles = self._read(self._paths[0])
            if settles:
                return settles

    def _drop(self) -> None:
        page = self._page
        if page is None:
            return
        if page.start:
            os.truncate(page.path, page.start)
        else:
            page.path.unlink(missing_ok=True)
            self._paths.remove(page.path)
            self._acknowledged.clear()
        self._page = None

    def _read(self, path: Path) -> list[Settle]:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(0, end - PAGE_BYTES)
            if start:
                # From the first whole line on; without one the page is one piece of rubbish.
                file.seek(start - 1)
                skipped = len(file.readline()) - 1
                start = start + skipped if start + skipped < end else start
            file.seek(start)
            lines = file.read().splitlines()
        settles: dict[str, Settle] = {}
        num_damaged = 0
        for line in reversed(lines):
            found = parse_line(line)
            self._num_left -= line.startswith(_SETTLE_START)
            self._num_left += line.startswith(_ACKNOWLEDGED_START)
            if isinstance(found, str):
                self._acknowledged.add(found)
            elif found is None:
                num_damaged += bool(line)
            elif found.lease_id in self._acknowledged:
                self._acknowledged.discard(found.lease_id)
            else:
                settles.setdefault(found.lease_id, found)
        warn_of_damage(path, num_damaged)
        self._page = _Page(path, start)
        return list(reversed(settles.values()))


def _count(path: Path) -> int:
    num_settles = num_acknowledged = 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            num_settles += line.startswith(_SETTLE_START)
            num_acknowledged += line.startswith(_ACKNOWLEDGED_START)
    return max(0, num_settles - num_acknowledged)
