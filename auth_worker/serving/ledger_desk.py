"""Answers what many keys, or lines of the ledger or the audit log, say, beside the commits."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Final, Protocol

from sqlalchemy import Connection

from auth_worker.clock import Clock
from auth_worker.errors import AuthError, ReportUnavailableError, StoreError
from auth_worker.records.operations import (
    Beside,
    CountKeyRows,
    ReadAuditRows,
    ReadKeys,
    ReadUsageRows,
    Result,
)
from auth_worker.storage.audit_table import read_page
from auth_worker.storage.backlog import OnDone
from auth_worker.storage.key_counts import count_keys
from auth_worker.storage.key_table import KeyTable
from auth_worker.storage.usage_table import read_minutes, read_usage

TIMEOUT_S: Final = 4.0
"""For one page; gateways wait a little longer by default (`PENSTOCK_AUTH_TIMEOUT_S`)."""
MAX_WAITING: Final = 16
"""With so many questions in hand for usage, or for lists, further ones are refused."""

_logger = logging.getLogger("penstock.auth")


class Reading(Protocol):
    """Opens a connection that only reads; see `Database.reading`."""

    def __call__(self, *, timeout_s: float | None = None) -> AbstractContextManager[Connection]:
        """The connection, on which a statement may take so long."""
        ...


class LedgerDesk:
    """Reads usage, keys and the audit log, a page after another; nobody else waits for it.

    Sums of usage may take seconds, so lists of keys and of the audit log don't wait for them.

    Args:
        reading: Opens a connection beside the one that writes.
        reports: Runs the reading of usage; with one thread.
        lists: Runs all other reading; with another one.
        call_soon: Runs a function in the I/O thread.
        clock: For what a key's status is now.
    """

    def __init__(
        self,
        reading: Reading,
        reports: Executor,
        lists: Executor,
        call_soon: Callable[..., object],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._reading = reading
        self._reports = reports
        self._lists = lists
        self._call_soon = call_soon
        self._num_waiting = {reports: 0, lists: 0}

    def read(self, wanted: Beside, on_done: OnDone) -> None:
        """Call back in the I/O thread with a page, or with why there is none."""
        executor = self._reports if isinstance(wanted, ReadUsageRows) else self._lists
        if self._num_waiting[executor] >= MAX_WAITING:
            on_done(
                ReportUnavailableError(
                    f"{MAX_WAITING} questions for usage, or for keys and the audit log, wait"
                    " already. Try again soon."
                )
            )
            return
        self._num_waiting[executor] += 1
        executor.submit(self._run, executor, wanted, on_done)

    def _run(self, executor: Executor, wanted: Beside, on_done: OnDone) -> None:
        try:
            result = self._page(wanted)
        except Exception:
            _logger.exception("usage, keys or the audit log could not be read")
            result = AuthError("The auth worker could not complete this operation.")
        self._call_soon(self._done, executor, on_done, result)

    def _page(self, wanted: Beside) -> Result:
        try:
            with self._reading(timeout_s=TIMEOUT_S) as connection:
                match wanted:
                    case ReadAuditRows():
                        return read_page(connection, wanted)
                    case ReadKeys():
                        return KeyTable(connection, self._clock.wall_s()).page(wanted)
                    case CountKeyRows():
                        return count_keys(connection, self._clock.wall_s())
                    case ReadUsageRows():
                        read = read_minutes if wanted.bucket == "minute" else read_usage
                        return read(connection, wanted)
        except StoreError as error:
            _logger.warning("usage, keys or the audit log could not be read: %s", error)
            return ReportUnavailableError(
                f"This could not be read within {TIMEOUT_S:.0f} s. Ask for less time, for usage by"
                " the hour or in fewer groups, or try again later."
            )

    def _done(self, executor: Executor, on_done: OnDone, result: Result) -> None:
        self._num_waiting[executor] -= 1
        on_done(result)
