"""Lets old ledger rows and audit entries go, a few at a time, and signs the audit log's end."""

from collections.abc import Callable
from typing import Final

from auth_worker.clock import Clock
from auth_worker.records.operations import (
    CutAudit,
    FoldLedger,
    Operation,
    Removed,
    Result,
    SignAudit,
)
from auth_worker.storage.backlog import OnDone
from auth_worker.storage.retention import Retention

INTERVAL_S: Final = 3600.0
AUDIT_INTERVAL_S: Final = 86_400.0
"""Each cut is an entry itself, so there is one a day."""
SIGNING_INTERVAL_S: Final = 600.0
MAX_ROWS: Final = 1000
MAX_ENTRIES: Final = 10_000
"""In one transaction, so that settlements of the same moment wait little."""
_MS_A_DAY: Final = 86_400_000


class Housekeeping:
    """Submits what is due; all methods are called in the I/O thread.

    Args:
        retention: What is to go.
        clock: Both clocks.
        commit: Makes an operation durable and calls back with its result.
    """

    def __init__(
        self,
        retention: Retention,
        *,
        clock: Clock,
        commit: Callable[[Operation, OnDone], None],
    ) -> None:
        self._retention = retention
        self._clock = clock
        self._commit = commit
        self._ledger_due_s = clock.monotonic_s()
        self._audit_due_s = clock.monotonic_s()
        self._signing_due_s = clock.monotonic_s() + SIGNING_INTERVAL_S

    def tick(self) -> None:
        """Begin what is due; called about every second."""
        now_s = self._clock.monotonic_s()
        if self._retention.ledger_days and now_s >= self._ledger_due_s:
            self._ledger_due_s = now_s + INTERVAL_S
            self._fold()
        if self._retention.audit_days and now_s >= self._audit_due_s:
            self._audit_due_s = now_s + AUDIT_INTERVAL_S
            self._cut()
        if now_s >= self._signing_due_s:
            self._signing_due_s = now_s + SIGNING_INTERVAL_S
            self._commit(SignAudit(), lambda _: None)

    def _fold(self) -> None:
        before_ms = self._days_ago_ms(self._retention.ledger_days)

        def on_done(result: Result) -> None:
            if isinstance(result, Removed) and result.num_rows == MAX_ROWS:
                self._fold()

        self._commit(FoldLedger(before_ms, MAX_ROWS), on_done)

    def _cut(self) -> None:
        before_ms = self._days_ago_ms(self._retention.audit_days)

        def on_done(result: Result) -> None:
            if isinstance(result, Removed) and result.num_rows == MAX_ENTRIES:
                self._cut()

        self._commit(CutAudit(before_ms, MAX_ENTRIES), on_done)

    def _days_ago_ms(self, days: int) -> int:
        return int(self._clock.wall_s() * 1000) - days * _MS_A_DAY
