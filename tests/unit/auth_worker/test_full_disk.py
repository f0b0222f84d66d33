"""A disk that is full: one line in the log, nothing granted, nothing lost, and on as it has
room."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from auth_worker.errors import StoreUnavailableError
from auth_worker.records.operations import AddKey, AuditEntry, Operation, Result
from auth_worker.storage.committer import Committer
from auth_worker.storage.sqlite_database import SqliteDatabase
from auth_worker.storage.sqlite_store import SqliteStore
from tests.fakes.auth_parts import FakeClock, booking, stored_key

AUDIT = AuditEntry(0, "", "key_created", "x")
ROOMY = 1 << 20


def limit_pages(store: SqliteStore, num_pages: int) -> None:
    """Let the file grow to so many pages at most, as a full disk would; below its size, not at all.

    https://www.sqlite.org/pragma.html#pragma_max_page_count
    """
    database = store.database
    assert isinstance(database, SqliteDatabase)
    assert database._writing is not None
    driver = database._writing.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute(f"PRAGMA max_page_count = {num_pages}")


class WatchedStore(SqliteStore):
    """Says when it has refused a group for the second time, so that the first refusal is known."""

    def __init__(self, directory: Path) -> None:
        self.refused_again = threading.Event()
        self._num_refused = 0
        super().__init__(directory, clock=FakeClock())

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        try:
            return super().apply(operations)
        except StoreUnavailableError:
            self._num_refused += 1
            if self._num_refused == 2:
                self.refused_again.set()
            raise


def test_settlements_wait_until_the_database_has_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = WatchedStore(tmp_path)
    store.apply([AddKey(stored_key(), AUDIT)])
    limit_pages(store, 1)
    done = threading.Event()
    committer = Committer(store, deliver=lambda _: done.set(), on_fatal=lambda _: None)
    # More than the free pages of the file take.
    for number in range(400):
        committer.submit(booking(f"lease-{number}", request_id="r" * 500), lambda _: None)
    committer.start()
    assert store.refused_again.wait(60)
    assert not committer.is_healthy
    assert not done.is_set()
    limit_pages(store, ROOMY)
    assert done.wait(60)
    assert committer.close(10.0)
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM ledger").scalar_one() == 400
    store.close()
    lines = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 1
    assert "full" in lines[0]
