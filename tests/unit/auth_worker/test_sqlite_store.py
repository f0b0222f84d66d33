"""What only the SQLite store has: one owner of the file, durable transactions, a full disk."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from auth_worker.errors import StoreLockedError, StoreUnavailableError
from auth_worker.storage.sqlite_database import SqliteDatabase
from auth_worker.storage.sqlite_store import SqliteStore
from tests.fakes.auth_parts import FakeClock, booking


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path, clock=FakeClock())
    yield store
    store.close()


def test_a_second_auth_worker_is_refused_with_one_clear_line(store: SqliteStore) -> None:
    with pytest.raises(StoreLockedError, match="Another auth worker") as caught:
        SqliteStore(store.path.parent, clock=FakeClock())
    assert "\n" not in caught.value.message


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    folder = tmp_path / "ours?mode=memory#50%41 ü"
    store = SqliteStore(folder, clock=FakeClock())
    try:
        store.apply([booking("lease-1")])
        with store.database.reading() as connection:
            assert connection.execute(text("SELECT count(*) FROM ledger")).scalar_one() == 1
    finally:
        store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_what_settlements_leave_in_its_page_cache_is_bounded(tmp_path: Path) -> None:
    """They append, so that a larger one only grows; SQLite tells KiB as a negative number."""
    database = SqliteDatabase(tmp_path)
    try:
        with database.transaction() as connection:
            assert connection.execute(text("PRAGMA cache_size")).scalar_one() == -512
    finally:
        database.close()


@pytest.mark.parametrize(("num_free", "says"), [(3, True), (1000, False)])
def test_a_failed_write_says_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_free: int, says: bool
) -> None:
    monkeypatch.setattr("auth_worker.storage.sqlite_database.BUSY_TIMEOUT_S", 0.0)
    store = SqliteStore(tmp_path, clock=FakeClock())
    monkeypatch.setattr(
        "auth_worker.storage.sqlite_database.os.statvfs",
        lambda _: SimpleNamespace(f_bavail=num_free, f_frsize=4096),
    )
    blocker = sqlite3.connect(store.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreUnavailableError) as caught:
            store.apply([booking("lease-1")])
    finally:
        blocker.close()
        store.close()
    assert ("12288 bytes are free" in caught.value.message) == says


def test_writes_are_synchronous_and_in_the_write_ahead_log(store: SqliteStore) -> None:
    with store._engine.begin() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2


def test_the_writer_keeps_its_connection_and_gets_another_when_it_is_lost(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = store.database
    assert isinstance(database, SqliteDatabase)
    store.apply([])
    first = database._writing
    assert first is not None
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        assert connection is first
        raise ZeroDivisionError
    store.apply([])
    assert database._writing is first
    # After a COMMIT that failed SQLAlchemy rolls nothing back.
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(database.engine.dialect, "do_rollback", lambda _: None)
        with database.transaction():
            raise ZeroDivisionError
    store.apply([])
    assert database._writing is first
    first.close()
    store.apply([])
    assert database._writing is not first
