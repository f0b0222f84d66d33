"""Reads the audit log back and follows its chain of hashes, beside whoever writes it."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from auth_worker.records.audit_chain import ChainCheck, ChainedEntry

_BEFORE_ALL = -(2**63)
BATCH_ENTRIES = 2000
START_DELAY_S = 1.0
"""Gateways that have just found the worker go first."""
PAUSE_S = 0.01
"""Between two batches at the start, so that deciding goes first."""


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """What came of following the chain.

    Attributes:
        num_entries: That hold, from the first one on.
        head: The last of them; None without any.
        trouble: What is wrong with the next one; None when all hold.
    """

    num_entries: int
    head: ChainedEntry | None
    trouble: str | None

    def __str__(self) -> str:
        if self.trouble is not None:
            return f"the audit log does not hold: {self.trouble}; {self.num_entries} before it do"
        head = self.head
        where = "" if head is None else f", the last one is {head.seq}:{head.hash.hex()}"
        return f"{self.num_entries} entries of the audit log hold{where}"


def check_log(database: Path, *, pause: Callable[[], None] = lambda: None) -> CheckedLog:
    """Follow the chain of a database, which may be in use.

    Args:
        database: The file.
        pause: Called between batches; what it raises ends the check.

    Raises:
        sqlite3.Error: The database can't be read.
    """
    check = ChainCheck()
    trouble = None
    with closing(
        sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    ) as connection:
        for batch in _batches(connection, check):
            trouble = check.first_broken(batch)
            if trouble is not None:
                break
            pause()
    return checked_log(check, trouble)


def checked_log(check: ChainCheck, trouble: str | None) -> CheckedLog:
    """What a check that has ended says."""
    return CheckedLog(check.num_entries, check.head, trouble)


def _batches(connection: sqlite3.Connection, check: ChainCheck) -> Iterator[list[ChainedEntry]]:
    while True:
        last = _BEFORE_ALL if check.head is None else check.head.seq
        rows = connection.execute(
            "SELECT * FROM audit_log WHERE seq > ? ORDER BY seq LIMIT ?", (last, BATCH_ENTRIES)
        ).fetchall()
        if not rows:
            return
        yield [ChainedEntry(*row) for row in rows]


class _StoppedError(Exception):
    """The process ends before the check does."""


class BackgroundCheck:
    """Follows the chain of a database once, in a thread of its own.

    Args:
        database: The file.
        on_done: Called in that thread with what came of it; not when it was stopped.
        on_failed: Called in that thread when the log can't be read.
        delay_s: The check begins so long after the start.
    """

    def __init__(
        self,
        database: Path,
        *,
        on_done: Callable[[CheckedLog], None],
        on_failed: Callable[[str], None],
        delay_s: float = START_DELAY_S,
    ) -> None:
        self._database = database
        self._delay_s = delay_s
        self._on_done = on_done
        self._on_failed = on_failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-check", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it, whether it is done or not."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        if self._stop.wait(self._delay_s):
            return
        try:
            checked = check_log(self._database, pause=self._pause)
        except _StoppedError:
            return
        except sqlite3.Error as error:
            self._on_failed(str(error))
            return
        self._on_done(checked)

    def _pause(self) -> None:
        if self._stop.wait(PAUSE_S):
            raise _StoppedError
