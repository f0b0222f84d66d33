"""What only the PostgreSQL store has: a lease, commits in doubt, a server that goes and comes."""

import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from auth_worker.auditing.audit_check import check_log
from auth_worker.errors import (
    StoreDamagedError,
    StoreError,
    StoreFencedError,
    StoreForeignError,
    StoreLockedError,
    StoreMissingError,
    StoreUnavailableError,
)
from auth_worker.principals.keys import StoredKey
from auth_worker.records.operations import (
    AddKey,
    AppendAudit,
    AuditEntry,
    KeyPage,
    Operation,
    ReadKeys,
    Snapshot,
)
from auth_worker.storage import migrations
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.key_table import load_keys
from auth_worker.storage.lease_keeper import LeaseKeeper
from auth_worker.storage.postgres_database import (
    HELD_S,
    LEASE_S,
    RENEWED_S,
    STUCK_S,
    PostgresDatabase,
)
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.standby import POLL_S, ReadAhead, read_ahead, stand_by
from protocol.errors import ConfigurationError
from tests.fakes.auth_parts import FakeClock, booking, stored_key
from tests.fakes.auth_stores import rows
from tests.fakes.postgres_server import PostgresServer, find_binaries

AUDIT = AuditEntry(0, "", "key_created", "key_user")
PASSWORD = "a-password-that-must-not-show"

OpenDatabase = Callable[[], PostgresDatabase]


@pytest.fixture
def name(postgres_server: PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def connect(
    postgres_server: PostgresServer, name: str, clock: FakeClock, tmp_path: Path
) -> Iterator[OpenDatabase]:
    """Databases as several workers would open them, on one clock."""
    made: list[PostgresDatabase] = []

    def open_one() -> PostgresDatabase:
        made.append(
            PostgresDatabase(
                DatabaseUrl(postgres_server.url(name), "URL"),
                marker=tmp_path / "created",
                holder=f"worker-{len(made)}",
                clock_s=clock.monotonic_s,
                idle_timeout_s=120.0,
            )
        )
        return made[-1]

    yield open_one
    for database in made:
        database.close()


def open_store(database: PostgresDatabase) -> SqlStore:
    return SqlStore(database, clock=FakeClock())


def take(database: PostgresDatabase) -> SqlStore:
    assert database.is_free()
    return SqlStore(database, clock=FakeClock())


def test_a_holder_that_writes_nothing_for_the_time_of_its_lease_loses_it(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    first, second = connect(), connect()
    store = take(first)
    assert first.holds()
    assert not second.is_free()
    clock.advance(LEASE_S - 0.1)
    assert not first.holds(), "it must stop granting before others may begin"
    assert not second.is_free()
    clock.advance(0.2)
    assert second.is_free()
    successor = take(second)
    assert successor.epoch == store.epoch + 1
    with pytest.raises(StoreFencedError, match=f"epoch {successor.epoch}, mine is {store.epoch}"):
        store.apply([booking("late")])
    assert rows(successor, "SELECT * FROM ledger") == []
    assert not first.holds()
    assert second.holds()


def test_every_transaction_of_the_holder_keeps_the_lease(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    first, second = connect(), connect()
    store = take(first)
    for _ in range(5):
        assert not second.is_free()
        clock.advance(HELD_S - 0.1)
        assert first.wants_renewal()
        store.apply([])
        assert first.holds()
        assert not first.wants_renewal()
    clock.advance(RENEWED_S)
    assert first.wants_renewal()


def test_reading_keeps_no_lease(connect: OpenDatabase, clock: FakeClock) -> None:
    database = connect()
    store = take(database)
    clock.advance(HELD_S + 0.1)
    store.load(recent_since_ms=0)
    assert not database.holds()


def until(fact: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_slow_load_keeps_the_lease_while_it_lasts(
    connect: OpenDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auth_worker.storage.lease_keeper.LOOK_S", 0.001)
    database, other = connect(), connect()
    store = take(database)
    store.apply([AddKey(stored_key(f"key_{n}", f"psk-{n}"), AUDIT) for n in range(9)])

    def slow_keys(connection: Connection, *people: Any) -> Iterator[StoredKey]:
        for key in load_keys(connection, *people):
            clock.advance(0.3)
            until(lambda: not database.wants_renewal())
            assert not other.is_free()
            yield key

    monkeypatch.setattr("auth_worker.storage.snapshot.load_keys", slow_keys)
    with LeaseKeeper(store):
        assert len(store.load(recent_since_ms=0).keys) == 9
    assert database.holds()


def test_of_two_that_see_a_free_database_one_gets_it(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    first, second, third = connect(), connect(), connect()
    take(first).close()
    assert second.is_free()
    assert third.is_free()
    SqlStore(second, clock=FakeClock())
    with pytest.raises(StoreLockedError):
        SqlStore(third, clock=FakeClock())


def test_one_that_stands_by_takes_over_and_says_why_it_waited(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    store = take(connect())
    states: list[str] = []
    waits = iter([1.0, 1.0, None, 1.0, 1.0, 1.0, 1.0])

    def sleep(_: float) -> None:
        seconds = next(waits)
        if seconds is None:
            store.apply([])
        else:
            clock.advance(seconds)

    taken = stand_by(
        connect(),
        open_store=open_store,
        is_over=lambda: False,
        sleep=sleep,
        on_state=states.append,
        read=lambda: None,
        clock_s=clock.monotonic_s,
    )
    assert taken is not None
    successor, held = taken
    assert (successor.epoch, held) == (store.epoch + 1, None)
    assert states == [f"standing by: epoch {store.epoch} is active"]
    assert next(waits) == 1.0, "it waited the lease from the last write, and no longer"
    assert (
        stand_by(
            connect(),
            open_store=open_store,
            is_over=lambda: True,
            sleep=sleep,
            on_state=states.append,
            read=lambda: None,
        )
        is None
    )


def test_it_looks_again_the_moment_that_the_lease_is_over(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    take(connect())
    clock.advance(1000.0)
    began_s = clock.monotonic_s()

    def sleep(seconds: float) -> None:
        clock.advance(seconds if seconds < POLL_S else 0.9 * POLL_S)

    taken = stand_by(
        connect(),
        open_store=open_store,
        is_over=lambda: False,
        sleep=sleep,
        on_state=lambda _: None,
        read=lambda: None,
        clock_s=clock.monotonic_s,
    )
    assert taken is not None
    assert clock.monotonic_s() - began_s == pytest.approx(LEASE_S)


TAKE_OVER_S = 5.0
"""Issue 12: others take over within so long."""


@pytest.mark.parametrize("read_s", [0.0, 1.5, 3.0])
def test_a_take_over_is_within_five_seconds_of_the_last_commit_of_a_killed_holder(
    connect: OpenDatabase, clock: FakeClock, read_s: float
) -> None:
    """By the clock of the lease, whenever the holder dies between two looks.

    Args:
        read_s: How long it takes to read everything that the database holds.
    """
    taken_after_s: list[float] = []
    for part in range(5):
        store = take(connect())
        begins_s = clock.monotonic_s() + POLL_S * part / 5
        commits = [begins_s + RENEWED_S * number for number in range(4)]
        died_s = commits[-1]

        def pass_by(
            seconds: float, store: SqlStore = store, commits: list[float] = commits
        ) -> None:
            """The time in which the holder goes on, and then doesn't."""
            ends_s = clock.monotonic_s() + seconds
            while commits and commits[0] <= ends_s:
                clock.advance(commits.pop(0) - clock.monotonic_s())
                store.apply([])
            clock.advance(ends_s - clock.monotonic_s())

        database = connect()

        def read(
            database: PostgresDatabase = database, pass_by: Callable[[float], None] = pass_by
        ) -> ReadAhead | None:
            ahead = read_ahead(database, recent_since_ms=0)
            pass_by(read_s)
            return ahead

        taken = stand_by(
            database,
            open_store=open_store,
            is_over=lambda: False,
            sleep=pass_by,
            on_state=lambda _: None,
            read=read,
            clock_s=clock.monotonic_s,
        )
        assert taken is not None
        successor, held = taken
        assert successor.epoch == store.epoch + 1
        assert not commits, "it was never taken over while it committed"
        taken_after_s.append(clock.monotonic_s() - died_s + (read_s if held is None else 0.0))
        successor.close()
        clock.advance(1.0)
    assert min(taken_after_s) >= LEASE_S
    assert max(taken_after_s) < TAKE_OVER_S


def stand_by_and_read(
    database: PostgresDatabase, clock: FakeClock, waits: list[float | SqlStore]
) -> tuple[SqlStore, Snapshot | None, int]:
    """Take over after so many seconds and commits of the holder; how often everything was read."""
    steps = iter(waits)
    num_read = 0

    def sleep(_: float) -> None:
        step = next(steps)
        if isinstance(step, SqlStore):
            step.apply([AddKey(stored_key(f"key_{num_read}", f"psk-{num_read}"), AUDIT)])
        else:
            clock.advance(step)

    def read() -> ReadAhead | None:
        nonlocal num_read
        num_read += 1
        clock.advance(0.2)  # it takes its time
        return read_ahead(database, recent_since_ms=0)

    taken = stand_by(
        database,
        open_store=open_store,
        is_over=lambda: False,
        sleep=sleep,
        on_state=lambda _: None,
        read=read,
        clock_s=clock.monotonic_s,
    )
    assert taken is not None
    return (*taken, num_read)


def test_what_is_read_while_a_holder_is_silent_is_what_the_next_one_begins_with(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    store = take(connect())
    store.apply([AddKey(stored_key(), AUDIT), booking("a")])
    successor, held, num_read = stand_by_and_read(
        connect(), clock, [0.5, store, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    )
    assert num_read == 1, "while the holder wrote nothing was read, and then once"
    assert held is not None
    assert held == successor.load(recent_since_ms=0)
    assert len(held.keys) == 2


def test_what_was_read_before_a_holder_wrote_again_is_not_used(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    store = take(connect())
    waits: list[float | SqlStore] = [1.0, store, *[0.5] * 20]
    successor, held, num_read = stand_by_and_read(connect(), clock, waits)
    assert (num_read, held) == (1, None), "reading in vain is not repeated at once"
    assert len(successor.load(recent_since_ms=0).keys) == 1
    again: list[float | SqlStore] = [1.0, successor, 0.5, 0.5, successor, 0.5, successor]
    later = [*again, *[0.5] * 4, successor, *[0.5] * 20]
    last, held, num_read = stand_by_and_read(connect(), clock, later)
    assert num_read == 2, "after a rest it is"
    assert held == last.load(recent_since_ms=0)


def test_a_commit_between_the_look_and_the_taking_over_is_seen(
    connect: OpenDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder wakes up after the last look: whoever was faster is not overtaken by old keys."""
    store = take(connect())
    database = connect()
    is_free = database.is_free

    def is_free_and_then_it_wakes() -> bool:
        found = is_free()
        if found:
            monkeypatch.setattr(database, "is_free", is_free)
            store.apply([AddKey(stored_key(), AUDIT)])
        return found

    monkeypatch.setattr(database, "is_free", is_free_and_then_it_wakes)
    successor, held, _ = stand_by_and_read(database, clock, [1.0, 1.0, 1.0, *[0.5] * 20])
    assert held is None or len(held.keys) == 1
    assert len(successor.load(recent_since_ms=0).keys) == 1


def test_what_can_not_be_read_ahead_is_read_when_it_is_taken_over(
    connect: OpenDatabase, clock: FakeClock
) -> None:
    store = take(connect())
    database = connect()
    with store.database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE webhooks RENAME TO hooks_of_another_release")
    assert read_ahead(database, recent_since_ms=0) is None


def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_done_twice(
    connect: OpenDatabase,
) -> None:
    database = connect()
    store = take(database)
    operations: list[Operation] = [AddKey(stored_key(), AUDIT), booking("a"), AppendAudit(AUDIT)]
    lose_answer(database)
    with pytest.raises(StoreUnavailableError):
        store.apply(operations)
    (page, _, _) = store.apply(operations)
    assert isinstance(page, KeyPage)
    assert rows(store, "SELECT lease_id FROM ledger") == [("a",)]
    assert len(rows(store, "SELECT seq FROM audit_log")) == 3  # with the epoch's own
    store.apply([AppendAudit(AUDIT)])
    assert check_log(database.reading).trouble is None


def test_a_commit_that_was_lost_is_done_again(connect: OpenDatabase) -> None:
    database = connect()
    store = take(database)
    lose_answer(database, commits=False)
    with pytest.raises(StoreUnavailableError):
        store.apply([booking("a"), AppendAudit(AUDIT)])
    assert rows(store, "SELECT lease_id FROM ledger") == []
    store.apply([booking("a"), AppendAudit(AUDIT)])
    assert rows(store, "SELECT lease_id FROM ledger") == [("a",)]
    assert check_log(database.reading).trouble is None


def test_other_operations_after_a_commit_in_doubt_come_on_top(connect: OpenDatabase) -> None:
    database = connect()
    store = take(database)
    lose_answer(database)
    with pytest.raises(StoreUnavailableError):
        store.apply([booking("a"), AppendAudit(AUDIT)])
    store.apply([booking("b"), AppendAudit(AUDIT)])
    assert rows(store, "SELECT lease_id FROM ledger ORDER BY 1") == [("a",), ("b",)]
    assert check_log(database.reading).trouble is None


def test_a_server_that_stops_in_a_transaction_leaves_nothing_half_done(
    tmp_path: Path, postgres_server: PostgresServer, name: str, clock: FakeClock
) -> None:
    database = PostgresDatabase(
        DatabaseUrl(postgres_server.url(name), "URL"), clock_s=clock.monotonic_s
    )
    store = take(database)
    store.apply([AddKey(stored_key(), AUDIT)])
    for number, kind in enumerate((signal.SIGINT, signal.SIGQUIT)):
        with pytest.raises(StoreUnavailableError) as caught, database.transaction() as connection:
            assert database.hold(connection, store.epoch, store._num_commits + 1)
            connection.exec_driver_sql("DELETE FROM keys")
            postgres_server.stop(kind)
        assert "\n" not in caught.value.message
        with pytest.raises(StoreUnavailableError):
            store.apply([booking(f"lease-{number}")])
        postgres_server.start()
        store.apply([booking(f"lease-{number}")])
    (page,) = store.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    assert page.records[0].total_requests == 2
    store.close()


def test_a_transaction_that_stands_still_keeps_nobody_away(
    postgres_server: PostgresServer, name: str, connect: OpenDatabase
) -> None:
    database = connect()
    store = take(database)
    of_store = (
        "SELECT pid FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND application_name = 'penstock-auth'"
    )
    with pytest.raises(StoreUnavailableError), database.transaction() as connection:
        assert database.hold(connection, store.epoch, store._num_commits + 1)
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1ms'")
        until(lambda: not postgres_server.execute(of_store))
        connection.exec_driver_sql("DELETE FROM keys")
    store.apply([booking("a")])


def test_whoever_opens_a_store_may_pause_for_longer_than_a_holder(
    postgres_server: PostgresServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    migrate = migrations.migrate

    def show(connection: Connection) -> None:
        query = "SHOW idle_in_transaction_session_timeout"
        shown.append(connection.exec_driver_sql(query).scalar_one())

    def show_and_migrate(connection: Connection, **options: Any) -> int:
        show(connection)
        return migrate(connection, **options)

    monkeypatch.setattr(migrations, "migrate", show_and_migrate)
    database = PostgresDatabase(DatabaseUrl(postgres_server.url(name), "URL"))
    store = take(database)
    with database.transaction() as connection:
        show(connection)
    with database.reading() as connection:
        show(connection)
    store.close()
    assert shown == ["30s", "2s", "0"]


def test_a_server_that_is_full_or_read_only_is_worth_another_try(
    postgres_server: PostgresServer, name: str, connect: OpenDatabase
) -> None:
    store = take(connect())
    postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store._database.engine.dispose()  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailableError, match="read-only"):
        store.apply([booking("a")])
    postgres_server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    store.apply([booking("a")])


def test_a_row_lock_that_somebody_else_keeps_is_waited_for_and_not_for_ever(
    postgres_server: PostgresServer, name: str, connect: OpenDatabase
) -> None:
    store = take(connect())
    with psycopg.connect(postgres_server.conninfo(name)) as other:
        other.execute("SELECT * FROM authority FOR UPDATE")
        with pytest.raises(StoreUnavailableError, match="lock timeout"):
            store.apply([booking("a")])
    store.apply([booking("a")])


def test_a_database_that_vanished_or_was_changed_for_another_is_refused_by_name(
    postgres_server: PostgresServer, name: str, connect: OpenDatabase, tmp_path: Path
) -> None:
    take(connect()).close()
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    with pytest.raises(StoreMissingError, match="does not exist"):
        connect().is_free()
    postgres_server.execute(f"CREATE DATABASE {name}")
    with pytest.raises(StoreMissingError, match="Restore a backup") as caught:
        take(connect())
    assert str(tmp_path / "created") in caught.value.message
    without_marker = PostgresDatabase(DatabaseUrl(postgres_server.url(name), "URL"))
    take(without_marker).close()
    with pytest.raises(StoreForeignError, match="another database"):
        take(connect())


def test_a_user_that_the_server_does_not_know_is_refused_at_once(
    postgres_server: PostgresServer, name: str
) -> None:
    url = postgres_server.url(name).replace("penstock@", f"nobody:{PASSWORD}@")
    database = PostgresDatabase(DatabaseUrl(url, "URL"))
    with pytest.raises(StoreError, match="can't be used") as caught:
        database.is_free()
    assert not isinstance(caught.value, StoreUnavailableError)
    assert PASSWORD not in caught.value.message
    database.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.errors.DiskFull("no space left on device"), StoreUnavailableError),
        (psycopg.errors.IoError("could not write"), StoreUnavailableError),
        (
            psycopg.errors.TooManyConnections("sorry, too many clients already"),
            StoreUnavailableError,
        ),
        (
            # While a connection is made, errors have no code.
            psycopg.OperationalError('FATAL: too many connections for role "penstock"'),
            StoreUnavailableError,
        ),
        (psycopg.OperationalError('FATAL: role "penstock" does not exist'), StoreError),
        (psycopg.errors.AdminShutdown("terminating connection"), StoreUnavailableError),
        (psycopg.errors.DeadlockDetected("deadlock detected"), StoreUnavailableError),
        (psycopg.errors.DataCorrupted("invalid page in block 3"), StoreDamagedError),
        (psycopg.errors.IndexCorrupted("index is damaged"), StoreDamagedError),
        (psycopg.errors.UndefinedTable("relation keys does not exist"), StoreMissingError),
        (psycopg.errors.InsufficientPrivilege("permission denied"), StoreError),
    ],
)
def test_what_the_server_says_is_worth_another_try_or_is_not(
    connect: OpenDatabase, error: psycopg.Error, kind: type[StoreError]
) -> None:
    database = connect()
    with pytest.raises(StoreError) as caught, database.transaction():
        raise error
    assert type(caught.value) is kind
    assert str(error) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_connection_on_which_nothing_comes_back_is_cut(
    connect: OpenDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auth_worker.storage.postgres_database._WATCH_INTERVAL_S", 0.01)
    database = connect()
    store = take(database)
    late = threading.Thread(target=clock.advance, args=(STUCK_S + 1,))
    with pytest.raises(StoreUnavailableError), database.transaction() as connection:
        assert database.hold(connection, store.epoch, store._num_commits + 1)
        late.start()
        connection.exec_driver_sql("SELECT pg_sleep(60)")
    late.join()
    # The server finds out by itself that nobody waits for the statement, and gives up its lock.
    for _ in range(10):
        with suppress(StoreUnavailableError):
            store.apply([booking("a")])
            break
    assert rows(store, "SELECT lease_id FROM ledger") == [("a",)]


def test_text_that_postgresql_cannot_hold_is_kept_without_its_zeros(connect: OpenDatabase) -> None:
    store = take(connect())
    strange = replace(AUDIT, subject="key\0user", address="\0", detail={"name": "a\0b"})
    store.apply([AddKey(stored_key(name="na\0me"), strange), booking("a", model="de\0mo")])
    assert rows(store, "SELECT name FROM keys") == [("na\ufffdme",)]
    assert rows(store, "SELECT model FROM ledger") == [("de\ufffdmo",)]
    subject = rows(store, "SELECT subject, address FROM audit_log ORDER BY seq DESC LIMIT 1")
    assert subject == [("key\ufffduser", "\ufffd")]
    assert check_log(store.database.reading).trouble is None


def test_tables_that_vanish_while_it_runs_end_it_with_one_line(
    postgres_server: PostgresServer, name: str, connect: OpenDatabase
) -> None:
    store = take(connect())
    postgres_server.execute("DROP TABLE ledger", name)
    with pytest.raises(StoreMissingError) as caught:
        store.apply([booking("a")])
    assert "\n" not in caught.value.message


def test_a_database_in_another_encoding_is_refused(postgres_server: PostgresServer) -> None:
    postgres_server.execute(
        "CREATE DATABASE latin WITH ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        " TEMPLATE template0"
    )
    database = PostgresDatabase(DatabaseUrl(postgres_server.url("latin"), "URL"))
    with pytest.raises(StoreError, match="WITH ENCODING 'UTF8'"):
        take(database)
    database.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mysql://u:{}@db/auth", "must be a URL such as"),
        ("postgresql://u:{}@db", "must be a URL such as"),
        ("postgresql://u:{}@db/", "must be a URL such as"),
        ("{}", "must be a URL such as"),
        ("postgresql://u:{}@db/auth?sslmode=perhaps", "sslmode must be one of"),
        ("postgresql://u:{}@db/auth?sslmode=prefer", "may talk in plain text"),
    ],
)
def test_a_bad_address_is_refused_without_being_repeated(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        DatabaseUrl(text.format(PASSWORD), "PENSTOCK_DATABASE_URL")
    assert "PENSTOCK_DATABASE_URL" in caught.value.message
    assert PASSWORD not in caught.value.message


@pytest.mark.parametrize(
    ("text", "has_tls", "is_plaintext"),
    [
        ("postgresql://u:p@db.example/auth", "require", False),
        ("postgres://u:p@10.0.0.5:6432/auth", "require", False),
        (
            "postgresql://u:p@db.example/auth?sslmode=verify-full&sslrootcert=/ca",
            "verify-full",
            False,
        ),
        ("postgresql://u:p@db.example/auth?sslmode=disable", "disable", True),
        ("postgresql://u:p@localhost/auth", "", False),
        ("postgresql://u:p@127.0.0.1:5433/auth", "", False),
        ("postgresql://u:p@[::1]:5433/auth", "", False),
        ("postgresql://u@/auth?host=/run/postgresql", "", False),
        ("postgresql://u@/auth?host=/run/postgresql,db.example", "require", False),
    ],
)
def test_another_machine_is_talked_to_with_tls_unless_the_address_says_otherwise(
    text: str, has_tls: str, is_plaintext: bool
) -> None:
    url = DatabaseUrl(text, "URL")
    assert url.reveal().partition("sslmode=")[2].partition("&")[0] == has_tls
    assert url.is_plaintext == is_plaintext


def test_an_address_shows_neither_user_nor_password() -> None:
    url = DatabaseUrl(f"postgresql://secretuser:{PASSWORD}@db/auth?sslmode=require", "URL")
    for shown in (str(url), repr(url), f"{url}"):
        assert shown in ("postgresql://db/auth", "DatabaseUrl(postgresql://db/auth)")
    assert PASSWORD in url.reveal()


def lose_answer(database: PostgresDatabase, *, commits: bool = True) -> None:
    """The next commit comes through, or doesn't, and its answer is lost with the connection."""
    dialect: Any = database.engine.dialect
    commit = dialect.do_commit

    def do_commit(connection: Any) -> None:
        dialect.do_commit = commit
        if commits:
            commit(connection)
        connection.dbapi_connection.close()
        raise psycopg.OperationalError("the connection is lost")

    dialect.do_commit = do_commit


def test_over_tls_the_server_must_be_the_one_of_the_certificate(tmp_path: Path) -> None:
    binaries = find_binaries()
    if binaries is None or shutil.which("openssl") is None:
        pytest.skip("no PostgreSQL, or no openssl, is here: TLS to the database is not shown")
    server = PostgresServer(binaries)
    try:
        authority = server.certify()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server.start(tls_port=port)
        name = server.new_database()
        address = f"postgresql://penstock@127.0.0.1:{port}/{name}?sslmode=verify-full&sslrootcert="
        database = PostgresDatabase(DatabaseUrl(f"{address}{authority}", "URL"))
        store = take(database)
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert rows(store, query) == [(True,)]
        store.close()
        other = tmp_path / "other.crt"
        other.write_bytes(authority.read_bytes().replace(b"-----BEGIN", b"----- BEGIN"))
        stranger = PostgresDatabase(DatabaseUrl(f"{address}{other}", "URL"))
        with pytest.raises(StoreUnavailableError, match="certificate"):
            stranger.is_free()
        stranger.close()
    finally:
        server.close()
