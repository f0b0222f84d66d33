"""A database that is gone, empty or damaged is refused by name; what a crash leaves is not."""

import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from auth_worker.errors import StoreDamagedError, StoreMissingError, StoreUnavailableError
from auth_worker.exit_codes import exit_code_of
from auth_worker.records.operations import AddKey, AuditEntry
from auth_worker.storage import database_files
from auth_worker.storage.sqlite_database import SqliteDatabase
from auth_worker.storage.sqlite_store import DATABASE_NAME, SqliteStore
from tests.fakes.auth_parts import FakeClock, booking, stored_key

AUDIT = AuditEntry(0, "", "key_created", "key_user")
LOG_NAME = f"{DATABASE_NAME}-wal"
MARKER_NAME = f"{DATABASE_NAME}.created"
FRAME_BYTES = 24 + 4096
NUM_COMMITS = 12


def open_store(directory: Path) -> SqliteStore:
    return SqliteStore(directory, clock=FakeClock())


def num_booked(directory: Path) -> int:
    store = open_store(directory)
    with store._engine.connect() as connection:
        count: int = connection.exec_driver_sql("SELECT count(*) FROM ledger").scalar_one()
    store.close()
    return count


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder whose database was closed well: everything is in the main file."""
    directory = tmp_path / "closed"
    store = open_store(directory)
    store.apply([AddKey(stored_key(), AUDIT), *(booking(f"lease-{n}") for n in range(200))])
    store.close()
    assert not (directory / LOG_NAME).exists()
    return directory


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder as kill -9 leaves it: NUM_COMMITS bookings are in the write-ahead log."""
    directory = tmp_path / "killed"
    directory.mkdir()
    store = open_store(tmp_path / "running")
    store.apply([AddKey(stored_key(), AUDIT)])
    for number in range(NUM_COMMITS):
        store.apply([booking(f"lease-{number}")])
    for path in (tmp_path / "running").glob(f"{DATABASE_NAME}*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, directory)
    store.close()
    assert (directory / LOG_NAME).stat().st_size > NUM_COMMITS * FRAME_BYTES
    return directory


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_the_first_start_makes_a_database_and_says_so_beside_it(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    marker = tmp_path / MARKER_NAME
    assert "Remove it only to start over" in marker.read_text(encoding="utf-8")
    assert marker.stat().st_mode & 0o077 == 0
    open_store(tmp_path).close()


def test_a_database_of_before_gets_its_marker(closed: Path) -> None:
    (closed / MARKER_NAME).unlink()
    assert num_booked(closed) == 200
    assert (closed / MARKER_NAME).exists()


@pytest.mark.parametrize("how", ["missing", "empty", "tables"])
def test_a_database_that_is_gone_is_not_replaced_by_an_empty_one(closed: Path, how: str) -> None:
    database = closed / DATABASE_NAME
    if how == "missing":
        database.unlink()
    elif how == "empty":
        database.write_bytes(b"")
    else:  # all that is left when a log is deleted that held everything
        database.unlink()
        connection = sqlite3.connect(database)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
    before = {path.name: path.read_bytes() for path in closed.glob("auth.sqlite3*")}
    for _ in range(2):
        with pytest.raises(StoreMissingError, match=how) as caught:
            open_store(closed)
        assert "Restore a backup" in caught.value.message
        assert str(closed / MARKER_NAME) in caught.value.message
        assert "\n" not in caught.value.message
    after = {path.name: path.read_bytes() for path in closed.glob("auth.sqlite3*")}
    assert {name: after.get(name) for name in before} == before
    (closed / MARKER_NAME).unlink()
    database.unlink(missing_ok=True)
    assert num_booked(closed) == 0


def test_a_start_that_a_kill_cut_off_before_its_first_commit_begins_again(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).touch()
    assert num_booked(tmp_path) == 0


def test_a_database_is_refused_whichever_of_its_pages_is_zeroed(closed: Path) -> None:
    database = closed / DATABASE_NAME
    good = database.read_bytes()
    assert len(good) > 20 * 4096
    for offset in range(0, len(good), 4096):
        database.write_bytes(good)
        overwrite(database, offset, bytes(4096))
        with pytest.raises(StoreDamagedError, match=r"Restore a backup.*recover") as caught:
            open_store(closed)
        assert str(database) in caught.value.message
        assert "\n" not in caught.value.message
    database.write_bytes(good)
    assert num_booked(closed) == 200


def test_a_file_that_is_no_database_is_refused(closed: Path) -> None:
    (closed / DATABASE_NAME).write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreDamagedError, match="not a database"):
        open_store(closed)


def test_of_a_large_database_all_but_the_ledger_is_looked_through(
    closed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database_files, "MAX_FULL_CHECK_BYTES", 4096)
    with_root = open_store(closed)
    with with_root._engine.connect() as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'keys'"
        root: int = connection.exec_driver_sql(query).scalar_one()
    with_root.close()
    assert "its ledger is not checked" in caplog.text
    overwrite(closed / DATABASE_NAME, (root - 1) * 4096, bytes(4096))
    with pytest.raises(StoreDamagedError):
        open_store(closed)


def test_damage_that_shows_while_it_runs_says_what_to_do(closed: Path) -> None:
    store = open_store(closed)
    with store._engine.connect() as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'ledger'"
        root: int = connection.exec_driver_sql(query).scalar_one()
    database = store.database
    assert isinstance(database, SqliteDatabase)
    assert database._writing is not None
    database._writing.close()  # which remembers pages
    overwrite(closed / DATABASE_NAME, (root - 1) * 4096, bytes(4096))
    with pytest.raises(StoreDamagedError, match="Restore a backup"):
        store.apply([booking("another")])
    store.close()


def test_what_a_kill_leaves_opens_with_everything_that_was_committed(killed: Path) -> None:
    assert num_booked(killed) == NUM_COMMITS


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"garbage!" * 4, "no header of a write-ahead log"),
        (struct.pack(">8I", 0x377F0682, 3007000, 4096, 0, 1, 2, 3, 4), "checksum of its header"),
    ],
)
def test_a_log_whose_beginning_is_garbage_is_refused(killed: Path, data: bytes, words: str) -> None:
    overwrite(killed / LOG_NAME, 0, data)
    with pytest.raises(StoreDamagedError, match=words) as caught:
        open_store(killed)
    assert str(killed / LOG_NAME) in caught.value.message
    assert "Restore a backup" in caught.value.message
    # What the message offers beside the backup.
    (killed / LOG_NAME).rename(killed / "put away")
    (killed / MARKER_NAME).unlink()
    assert num_booked(killed) < NUM_COMMITS


@pytest.mark.parametrize("data", [bytes(FRAME_BYTES), bytes(range(256)) * 4, b"\xff" * 64])
@pytest.mark.parametrize("number", [0, 3])
def test_a_log_that_lost_a_frame_in_its_middle_is_refused(
    killed: Path, number: int, data: bytes
) -> None:
    overwrite(killed / LOG_NAME, 32 + number * FRAME_BYTES, data)
    with pytest.raises(StoreDamagedError, match=f"frame {number + 1} "):
        open_store(killed)


def test_a_log_of_random_bytes_behind_a_good_beginning_is_refused(killed: Path) -> None:
    log = killed / LOG_NAME
    overwrite(log, 32, bytes(range(1, 252)) * ((log.stat().st_size - 32) // 251))
    with pytest.raises(StoreDamagedError, match="does not belong to this log"):
        open_store(killed)


@pytest.mark.parametrize("num_left", [0, 20, 32, 100])
def test_a_log_that_a_crash_cut_off_while_it_was_begun_opens(killed: Path, num_left: int) -> None:
    log = killed / LOG_NAME
    (killed / MARKER_NAME).unlink()
    log.write_bytes(log.read_bytes()[:num_left])
    num_booked(killed)


def test_a_log_of_zeros_opens(killed: Path) -> None:
    (killed / MARKER_NAME).unlink()
    (killed / LOG_NAME).write_bytes(bytes(2 * FRAME_BYTES))
    num_booked(killed)


def test_a_last_commit_that_is_not_whole_opens_without_it(killed: Path) -> None:
    log = killed / LOG_NAME
    num_frames = (log.stat().st_size - 32) // FRAME_BYTES
    overwrite(log, 32 + (num_frames - 1) * FRAME_BYTES + 1000, b"torn" * 8)
    assert num_booked(killed) == NUM_COMMITS - 1


def test_frames_of_before_the_log_was_begun_anew_are_passed_over(tmp_path: Path) -> None:
    store = open_store(tmp_path / "running")
    store.apply([booking(f"lease-{n}", request_id="r" * 900) for n in range(50)])
    raw = store._engine.raw_connection()
    raw.cursor().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    raw.close()
    store.apply([booking("after")])
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in (DATABASE_NAME, LOG_NAME, MARKER_NAME):
        shutil.copy(tmp_path / "running" / name, killed)
    store.close()
    assert (killed / LOG_NAME).stat().st_size > 10 * FRAME_BYTES
    assert num_booked(killed) == 51


@pytest.mark.parametrize(
    ("error", "code"),
    [(StoreMissingError("m"), 78), (StoreDamagedError("d"), 78), (StoreUnavailableError("u"), 75)],
)
def test_the_exit_code_says_whether_another_start_can_help(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code  # type: ignore[arg-type]
