"""Reads the audit log back and follows its chain of hashes, beside whoever writes it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import Connection

from auth_worker.errors import StoreError
from auth_worker.records.audit_chain import ChainCheck, ChainedEntry
from auth_worker.storage.audit_table import read_chain

Reading = Callable[[], AbstractContextManager[Connection]]
"""Opens a connection that only reads, beside the one that writes; see `Database.reading`."""

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


def check_log(reading: Reading, *, pause: Callable[[], None] = lambda: None) -> CheckedLog:
    """Follow the chain of a database, which may be in use.

    Args:
        reading: Opens it.
        pause: Called between batches; what it raises ends the check.

    Raises:
        StoreError: The database can't be read.
    """
    check = ChainCheck()
    trouble = None
    with reading() as connection:
        for batch in _batches(connection, check):
            trouble = check.first_broken(batch)
            if trouble is not None:
                break
            pause()
    return checked_log(check, trouble)


def checked_log(check: ChainCheck, trouble: str | None) -> CheckedLog:
    """What a check that has ended says."""
    return CheckedLog(check.num_entries, check.head, trouble)


def _batches(connection: Connection, check: ChainCheck) -> Iterator[list[ChainedEntry]]:
    while True:
        last = _BEFORE_ALL if check.head is None else check.head.seq
        entries = read_chain(connection, last, BATCH_ENTRIES)
        if not entries:
            return
        yield entries


class _StoppedError(Exception):
    """The process ends before the check does."""


class BackgroundCheck:
    """Follows the chain of a database once, in a thread of its own.

    Args:
        reading: Opens it.
        on_done: Called in that thread with what came of it; not when it was stopped.
        on_failed: Called in that thread when the log can't be read.
        delay_s: The check begins so long after the start.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        on_done: Callable[[CheckedLog], None],
        on_failed: Callable[[str], None],
        delay_s: float = START_DELAY_S,
    ) -> None:
        self._reading = reading
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
            checked = check_log(self._reading, pause=self._pause)
        except _StoppedError:
            return
        except StoreError as error:
            self._on_failed(error.message)
            return
        self._on_done(checked)

    def _pause(self) -> None:
        if self._stop.wait(PAUSE_S):
            raise _StoppedError
