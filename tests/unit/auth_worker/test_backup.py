"""Backups are whole, of one moment, and go into either database; a check finds what is wrong."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event

from auth_worker import maintenance
from auth_worker.errors import StoreError
from auth_worker.records.operations import (
    AddKey,
    AppendAudit,
    AuditEntry,
    FoldLedger,
    KeyPage,
    ReadKeys,
    SaveLease,
)
from auth_worker.storage import backup, migrations
from auth_worker.storage.backup import EPOCHS_A_RESTORE
from auth_worker.storage.migrations import newest_version
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.sqlite_database import DATABASE_NAME
from auth_worker.storage.sqlite_store import SqliteStore
from tests.fakes.auth_parts import FakeClock, admin_key, booking, stored_key
from tests.fakes.auth_stores import StoreHarness, rows
from tests.fakes.postgres_server import PostgresServer
from tests.unit.auth_worker.test_migrations import old_database
from tests.unit.auth_worker.test_store import LEASE

AUDIT = AuditEntry(5, "", "key_created", "key_user", {"name": "ü"})
OLD_MS = 1_000


@pytest.fixture
def other(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], StoreHarness]:
    """An empty database of either kind to restore into."""

    def make(kind: str) -> StoreHarness:
        folder = tmp_path / "other"
        folder.mkdir()
        server: Callable[[], PostgresServer] = lambda: request.getfixturevalue("postgres_server")  # noqa: E731
        harness = StoreHarness("sqlite" if kind == "sqlite" else "postgresql", folder, server)
        request.addfinalizer(harness.close)
        return harness

    return make


def run(harness: StoreHarness, *arguments: str) -> int:
    environ = {} if harness.kind == "sqlite" else {"PENSTOCK_DATABASE_URL": harness.plain_url}
    return maintenance.main(["--data-dir", str(harness.data_dir), *arguments], environ)


def filled(harness: StoreHarness) -> SqlStore:
    store = harness.open()
    store.apply([AddKey(admin_key(), AUDIT), AddKey(stored_key(), AUDIT), SaveLease(LEASE)])
    store.apply([booking("lease:old", settled_at_ms=OLD_MS), booking("lease:young")])
    store.apply([FoldLedger(OLD_MS + 1, 10)])
    return store


def contents(store: SqlStore) -> dict[str, object]:
    tables = ("keys", "leases", "ledger", "ledger_hours", "usage_by_hour", "audit_log")
    return {table: rows(store, f"SELECT * FROM {table} ORDER BY 1") for table in tables}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_made_while_it_is_in_use_restores_into_either_database(
    harness: StoreHarness,
    other: Callable[[str], StoreHarness],
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = filled(harness)
    expected = contents(store)
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    assert "2 keys, 1 leases, 1 ledger, 1 ledger_hours" in capsys.readouterr().out
    assert file.stat().st_mode & 0o077 == 0
    store.apply([AddKey(stored_key("key_later", "psk-later"), AUDIT)])
    target = other(kind)
    target.begin_anew(is_bare=True)
    assert run(target, "restore", str(file)) == maintenance.DONE
    assert run(target, "check") == maintenance.DONE
    capsys.readouterr()
    restored = target.open()
    assert restored.epoch == store.epoch + EPOCHS_A_RESTORE + 1
    assert restored.load(recent_since_ms=0).leases == (LEASE,)
    got = contents(restored)
    log = got.pop("audit_log")
    assert isinstance(log, list)
    assert log[:-1] == expected.pop("audit_log"), "the epoch's own entry comes on top"
    assert got == expected
    # New rows come after those of before, and the restored one is another generation.
    restored.apply([AddKey(stored_key("key_new", "psk-new"), AUDIT)])
    (page,) = restored.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    assert page.records[0].key_id == "key_new"
    ((before,),) = rows(store, "SELECT database_id FROM authority")
    ((after,),) = rows(restored, "SELECT database_id FROM authority")
    assert after == f"{before}.1"
    assert run(target, "check") == maintenance.DONE


def test_a_backup_holds_everything_whatever_its_file_is_called(
    harness: StoreHarness, other: Callable[[str], StoreHarness], tmp_path: Path
) -> None:
    expected = contents(filled(harness))
    folder = tmp_path / "backups"
    folder.mkdir()
    file = folder / "ours?mode=ro#50% ü"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    assert [path.name for path in folder.iterdir()] == [file.name]
    restored = other("sqlite")
    assert run(restored, "restore", str(file)) == maintenance.DONE
    store = restored.open()
    assert contents(store)["keys"] == expected["keys"]


def test_a_backup_replaces_nothing_and_is_restored_over_nothing(
    harness: StoreHarness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = filled(harness)
    file = tmp_path / "auth.backup"
    file.write_text("mine")
    assert run(harness, "backup", str(file)) == maintenance.FAILED
    assert "exists already" in one_line(capsys)
    assert file.read_text() == "mine"
    assert run(harness, "backup", str(tmp_path / "none" / "file")) == maintenance.FAILED
    assert "can't be used" in one_line(capsys)
    assert run(harness, "backup", str(tmp_path / "good")) == maintenance.DONE
    capsys.readouterr()
    store.close()
    before = rows(store, "SELECT * FROM keys")
    assert run(harness, "restore", str(tmp_path / "good")) == maintenance.FAILED
    said = one_line(capsys)
    assert "move it away" in said or "restore into an empty one" in said
    assert rows(store, "SELECT * FROM keys") == before
    assert [path.name for path in tmp_path.glob("*.new")] == []


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("harm", ["garbage", "torn", "empty", "missing", "foreign", "newer"])
def test_a_backup_that_is_none_leaves_the_database_empty(
    harness: StoreHarness, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(harness).close()
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    capsys.readouterr()
    good = file.read_bytes()
    match harm:
        case "garbage":
            file.write_bytes(b"no database" * 1000)
        case "torn":
            file.write_bytes(good[:8192] + bytes(4096) + good[12288:])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case "foreign":
            file.unlink()
            change(file, "CREATE TABLE customers (id INTEGER)")
        case _:
            change(file, "INSERT INTO schema_version VALUES (999, 'future', 0)")
    harness.begin_anew(is_bare=True)
    assert run(harness, "restore", str(file)) == maintenance.FAILED
    assert one_line(capsys).startswith(str(file))
    assert list(harness.data_dir.glob("auth.sqlite3.rest*")) == []
    store = harness.open()
    assert store.epoch == 1
    assert rows(store, "SELECT * FROM keys") == []


def change(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_backup_of_an_older_schema_is_brought_forward(
    harness: StoreHarness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_database(tmp_path / "old")
    file = tmp_path / "old" / DATABASE_NAME
    before = file.read_bytes()
    harness.begin_anew(is_bare=True)
    assert run(harness, "restore", str(file)) == maintenance.DONE
    assert file.read_bytes() == before
    store = harness.open()
    assert {key.key_id for key in store.load(recent_since_ms=0).keys} == {"key_admin", "key_user"}


def test_what_is_left_of_a_lost_database_is_not_mixed_into_the_restored_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = StoreHarness("sqlite", tmp_path, pytest.fail)
    store = filled(harness)
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    store.close()
    database = harness.data_dir / DATABASE_NAME
    database.unlink()
    log = database.with_name(database.name + "-wal")
    log.write_bytes(b"of the lost one")
    (harness.data_dir / "audit.checkpoints").write_text("9999 aa 1 name bb\n")
    assert run(harness, "restore", str(file)) == maintenance.DONE
    assert not log.exists()
    assert len(list(harness.data_dir.glob("*.before-restore-*"))) == 2
    harness.open()
    assert run(harness, "check") == maintenance.DONE
    harness.close()


def test_a_restore_that_is_killed_leaves_no_notes_of_the_lost_log_beside_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = StoreHarness("sqlite", tmp_path, pytest.fail)
    filled(harness).close()
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    harness.begin_anew()
    harness.data_dir.mkdir()
    (harness.data_dir / "audit.checkpoints").write_text("9999 aa 1 name bb\n")
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        moved = replace(path, target)
        if target.name == DATABASE_NAME:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", killed)
    assert run(harness, "restore", str(file)) == maintenance.INTERRUPTED
    monkeypatch.undo()
    assert (harness.data_dir / DATABASE_NAME).exists()
    assert run(harness, "check") == maintenance.DONE
    harness.close()


def test_no_backup_is_restored_under_a_running_auth_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = StoreHarness("sqlite", tmp_path, pytest.fail)
    filled(harness)
    assert run(harness, "backup", str(tmp_path / "file")) == maintenance.DONE
    capsys.readouterr()
    assert run(harness, "restore", str(tmp_path / "file")) == maintenance.FAILED
    assert "Another auth worker" in one_line(capsys)
    assert run(harness, "downgrade", "2") == maintenance.FAILED
    assert "Another auth worker" in one_line(capsys)
    harness.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE keys SET total_requests = 9 WHERE key_id = 'key_user'", "of 1 keys are not"),
        ("DELETE FROM ledger", "are not the sums of the ledger"),
        ("UPDATE usage_by_hour SET prompt_tokens = 0", "totals of hours are not"),
        ("UPDATE keys SET scopes = 'no list' WHERE key_id = 'key_user'", "1 keys can't be read"),
        ("UPDATE audit_log SET subject = 'x' WHERE seq = 2", "entry 2 was changed"),
    ],
)
def test_a_check_names_what_does_not_hold(
    harness: StoreHarness, statement: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(harness)
    assert run(harness, "check") == maintenance.DONE
    good = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok: ") for line in good)
    assert f"ok: schema version {newest_version()}" in good
    harness.execute(statement)
    assert run(harness, "check") == maintenance.BROKEN
    bad = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok: ")]
    assert len(bad) == 1
    assert bad[0].startswith("NOT OK: ")
    assert words in bad[0]


def test_a_check_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert maintenance.main(["--data-dir", str(tmp_path), "check"], {}) == maintenance.FAILED
    assert "there is no" in one_line(capsys)
    bad = {"PENSTOCK_DATABASE_URL": "postgresql://u:secret-word@/x?host=/nowhere"}
    assert maintenance.main(["--data-dir", str(tmp_path), "check"], bad) == maintenance.FAILED
    assert "secret-word" not in one_line(capsys)


def test_a_folder_that_can_not_be_looked_into_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("x" * 300)
    for command in (["check"], ["backup", str(tmp_path / "file")]):
        arguments = ["--data-dir", str(folder), *command]
        assert maintenance.main(arguments, {}) == maintenance.FAILED
        assert "File name too long" in one_line(capsys)


def test_a_disk_without_room_for_a_backup_is_named_by_what_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = StoreHarness("sqlite", tmp_path, pytest.fail)
    filled(harness).close()
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    capsys.readouterr()

    def small(*arguments: Any, **options: Any) -> Engine:
        engine = create_engine(*arguments, **options)
        # https://www.sqlite.org/pragma.html#pragma_max_page_count
        of_pages = "PRAGMA max_page_count = 8"
        event.listen(engine, "connect", lambda connection, _: connection.execute(of_pages))
        return engine

    with monkeypatch.context() as patched:
        patched.setattr(backup, "create_engine", small)
        assert run(harness, "backup", str(tmp_path / "second")) == maintenance.FAILED
    said = one_line(capsys)
    assert said.startswith(f"{tmp_path / 'second'}.new can't be written: database or disk is full")
    assert list(tmp_path.glob("second*")) == []

    def fills_up(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    harness.begin_anew(is_bare=True)
    monkeypatch.setattr("auth_worker.storage.backup.shutil.copyfile", fills_up)
    assert run(harness, "restore", str(file)) == maintenance.FAILED
    said = one_line(capsys)
    assert said.startswith(f"{harness.data_dir / DATABASE_NAME}.restored can't be used: No space")
    assert list(harness.data_dir.glob("*.restored")) == []
    harness.close()


def test_a_restore_keeps_workers_that_stand_by_away_and_looks_at_the_encoding(
    other: Callable[[str], StoreHarness],
    postgres_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    harness = StoreHarness("sqlite", tmp_path, pytest.fail)
    filled(harness).close()
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    target = other("postgresql")
    target.begin_anew(is_bare=True)
    locked: list[int] = []

    def continued(sink: Connection, _table: object) -> None:
        if not locked:
            text = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            text += " AND pid = pg_backend_pid()"
            locked.append(sink.exec_driver_sql(text).scalar_one())

    monkeypatch.setattr(backup, "_continue_numbers", continued)
    assert run(target, "restore", str(file)) == maintenance.DONE
    assert locked == [1]
    postgres_server.execute(
        "CREATE DATABASE latin_too WITH ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        " TEMPLATE template0"
    )
    capsys.readouterr()
    environ = {"PENSTOCK_DATABASE_URL": postgres_server.url("latin_too")}
    arguments = ["--data-dir", str(tmp_path / "latin"), "restore", str(file)]
    assert maintenance.main(arguments, environ) == maintenance.FAILED
    assert "WITH ENCODING 'UTF8'" in one_line(capsys)


def test_a_server_waits_for_a_restore_and_a_way_back_while_they_load_what_they_need(
    harness: StoreHarness,
    other: Callable[[str], StoreHarness],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends what is idle in a transaction, which a worker that stands still is after 2 s."""
    filled(harness).close()
    file = tmp_path / "auth.backup"
    assert run(harness, "backup", str(file)) == maintenance.DONE
    target = other("postgresql")
    target.begin_anew(is_bare=True)
    waits: list[str] = []

    def asked(connection: Connection, *_: object, **__: object) -> None:
        if connection.dialect.name == "postgresql":
            found = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout")
            waits.append(found.scalar_one())
            raise StoreError("that is all")

    monkeypatch.setattr(migrations, "migrate", asked)
    monkeypatch.setattr(migrations, "downgrade", asked)
    assert run(target, "restore", str(file)) == maintenance.FAILED
    assert run(target, "downgrade", "4") == maintenance.FAILED
    assert waits == ["30s", "30s"]


def test_ctrl_c_ends_a_backup_without_a_word_and_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    SqliteStore(tmp_path / "data", clock=FakeClock()).close()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("auth_worker.storage.backup._copy_all", interrupted)
    arguments = ["--data-dir", str(tmp_path / "data"), "backup", str(tmp_path / "file")]
    assert maintenance.main(arguments, {}) == maintenance.INTERRUPTED
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_way_back_and_forward_again_keeps_keys_and_usage(
    harness: StoreHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    store = filled(harness)
    store.apply([AppendAudit(AUDIT)])
    keys = store.load(recent_since_ms=0).keys
    store.close()
    assert run(harness, "downgrade", "4") == maintenance.DONE
    assert "has schema version 4 now" in capsys.readouterr().out
    assert run(harness, "backup", str(harness.folder / "file")) == maintenance.FAILED
    assert "has schema version 4" in one_line(capsys)
    store = harness.open()
    assert store.load(recent_since_ms=0).keys == keys
    if harness.kind == "postgresql":
        store.close()
        assert run(harness, "downgrade", "3") == maintenance.FAILED
        assert "not to 3" in one_line(capsys)
