"""A store that is slow, stuck or away for a moment: who waits, how long, and what is held after."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConversationLockedError, StoreUnavailableError
from gateway.http.openresponses.convert import Refs
from gateway.http.response_turns.stored_turns import StoredTurn
from gateway.storage import database as module
from gateway.storage import jobs, postgres
from gateway.storage.database import Connection, Database, SqliteEngine
from gateway.storage.postgres import PostgresConnection, PostgresEngine
from gateway.storage.records import Bounds, Conversation
from gateway.storage.store import Store
from tests.fakes.postgres_server import PostgresServer

NOW_S = 1_000_000.0


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    def arrive(connection: Connection) -> None:
        jobs.beat(connection, "one", int(NOW_S * 1000))

    found = Database(SqliteEngine(tmp_path / "store"), arrive)
    yield found
    await found.close()


@pytest.fixture
async def store(database: Database) -> Store:
    store = Store(database, "one", Bounds(), lambda: NOW_S)
    await store.conversations.create("t", Conversation("conv_1", 0, b"{}"), [])
    return store


class Stuck:
    """Work that the database is stuck in until it is freed."""

    def __init__(self) -> None:
        self.freed = threading.Event()

    def __call__(self, _connection: Connection) -> None:
        self.freed.wait(60)


async def test_nobody_waits_forever_and_what_was_given_up_is_not_done(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck()
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "PATIENCE_S", 0.05)
        for work in (stuck, lambda _connection: done.append("late")):
            with pytest.raises(StoreUnavailableError, match="has not answered within"):
                await database.run(work)
    stuck.freed.set()
    await database.run(lambda _connection: done.append("next"))
    assert done == ["next"]


async def test_a_stuck_database_holds_up_no_end(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck()
    with monkeypatch.context() as patch:
        patch.setattr(module, "PATIENCE_S", 0.05)
        patch.setattr(module, "CLOSE_PATIENCE_S", 0.05)
        with pytest.raises(StoreUnavailableError):
            await database.run(stuck)
        await database.close()
    assert "what waits for it is lost" in caplog.text
    stuck.freed.set()


async def test_a_hold_that_was_given_up_is_let_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may have carried it out: nobody heard of it."""
    turn = StoredTurn(store, "resp_1", "t")
    begin = store.conversations.begin_turn

    async def late(*args: Any) -> list[bytes]:
        await begin(*args)
        raise StoreUnavailableError("It has not answered.")

    with monkeypatch.context() as patch:
        patch.setattr(store.conversations, "begin_turn", late)
        with pytest.raises(StoreUnavailableError):
            await turn.read(b"{}", Refs(conversation_id="conv_1"))
    turn.close()
    await _released(store)
    await store.conversations.begin_turn("t", "conv_1", "resp_2")


async def test_a_conversation_that_could_not_be_let_go_is_with_the_next_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(*_args: Any) -> None:
        raise StoreUnavailableError("It is away.")

    await store.conversations.begin_turn("t", "conv_1", "resp_1")
    with monkeypatch.context() as patch:
        patch.setattr(store.conversations, "end_turn", away)
        store.let_go("conv_1", "resp_1")
        await _released(store)
        await store.sweep()  # still away
    assert caplog.text.count("It is away.") == 1
    with pytest.raises(ConversationLockedError):
        await store.conversations.begin_turn("t", "conv_1", "resp_2")
    await store.sweep()
    await store.conversations.begin_turn("t", "conv_1", "resp_2")


async def _released(store: Store) -> None:
    for task in list(store._tasks):
        await task


async def test_a_statement_of_postgresql_ends_and_its_connection_stays(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_STATEMENT_TIMEOUT_S", 0.05)
    engine = PostgresEngine(postgres_server.url(postgres_server.new_database()))
    database = Database(engine)
    try:
        before = database._connection
        with pytest.raises(StoreUnavailableError):
            await database.run(lambda connection: connection.execute("SELECT pg_sleep(60)"))
        assert await database.run(lambda connection: connection.execute("SELECT 1")) == [(1,)]
        assert database._connection is before
        assert isinstance(before, PostgresConnection)
        told = before.raw.info.get_parameters()
        assert told["keepalives_idle"] == "5"
        assert told["tcp_user_timeout"] == "10000"
    finally:
        await database.close()
