"""The store in one SQLite file, the embedded default."""

from collections.abc import Callable
from pathlib import Path

from auth_worker.clock import Clock
from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.sqlite_database import DATABASE_NAME, SqliteDatabase

__all__ = ["DATABASE_NAME", "SqliteStore"]


class SqliteStore(SqlStore):
    """Keys, leases, ledger and audit log in `<directory>/auth.sqlite3`.

    Args:
        directory: Is made, with mode 0700, when it is missing.
        clock: For the times of the epoch and the migrations.
        lock_patience_s: How long to wait for another auth worker to release the database; one
            whose parent was killed may still be about to end.
        signer: As in `SqlStore`.
        on_checkpoint: As in `SqlStore`.

    Raises:
        StoreLockedError: Another auth worker holds this database.
        StoreTooNewError: A newer Penstock wrote it.
        StoreMissingError: There was a database, and it is gone or empty.
        StoreDamagedError: One of its files is damaged.
        StoreUnavailableError: The disk is full or failing.
        StoreError: It can't be opened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        lock_patience_s: float = 0.0,
        signer: AuditSigner | None = None,
        on_checkpoint: Callable[[Checkpoint], object] = lambda _: None,
    ) -> None:
        database = SqliteDatabase(directory, lock_patience_s=lock_patience_s)
        self._path = database.path
        self._engine = database.engine
        try:
            super().__init__(database, clock=clock, signer=signer, on_checkpoint=on_checkpoint)
        except BaseException:
            database.close()
            raise

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path
