"""Stores of the auth worker over either database, for tests that hold on both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import create_engine

from auth_worker.storage import migrations
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.postgres_database import PostgresDatabase
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.sqlite_database import SqliteDatabase
from tests.fakes.auth_parts import FakeClock
from tests.fakes.postgres_server import PostgresServer

Kind = Literal["sqlite", "postgresql"]


class StoreHarness:
    """Databases of one kind, and the stores that were opened on them.

    Args:
        kind: Of the databases.
        folder: For files.
        server: Starts or finds the PostgreSQL server, where one is needed.
    """

    def __init__(self, kind: Kind, folder: Path, server: Callable[[], PostgresServer]) -> None:
        self.kind = kind
        self.folder = folder
        self.clock = FakeClock()
        self._server = server
        self._name = ""
        self._num_databases = 0
        self._stores: list[SqlStore] = []
        self.begin_anew()

    def begin_anew(self, *, is_bare: bool = False) -> None:
        """The next stores are opened on another, empty database.

        Args:
            is_bare: It is to have no tables yet; one of SQLite never has.
        """
        self._num_databases += 1
        if self.kind == "postgresql":
            server = self._server()
            self._name = server.new_database(None if is_bare else _with_tables(server))

    @property
    def data_dir(self) -> Path:
        """Where the files of this database are."""
        return self.folder / f"data-{self._num_databases}"

    @property
    def url(self) -> DatabaseUrl:
        """Of the PostgreSQL database."""
        return DatabaseUrl(self.plain_url, "URL")

    @property
    def plain_url(self) -> str:
        """The same, as a setting has it."""
        return self._server().url(self._name)

    def database(self) -> SqliteDatabase | PostgresDatabase:
        """A connection of its own to the database."""
        if self.kind == "sqlite":
            return SqliteDatabase(self.data_dir)
        self.data_dir.mkdir(exist_ok=True)
        return PostgresDatabase(
            self.url,
            marker=self.data_dir / "created",
            # A store leaves it to its committer to try again; a test on a busy machine does not.
            idle_timeout_s=120.0,
        )

    def open(self, **options: Any) -> SqlStore:
        """A store; one that was opened before must be closed."""
        database = self.database()
        try:
            if isinstance(database, PostgresDatabase):
                assert database.is_free()
            store = SqlStore(database, clock=self.clock, **options)
        except BaseException:
            database.close()
            raise
        self._stores.append(store)
        return store

    def execute(self, *statements: str) -> None:
        """Write past the store, as somebody else would, in one transaction."""
        if self.kind == "sqlite":
            engine = create_engine(f"sqlite:///{self.data_dir / 'auth.sqlite3'}")
        else:
            engine = create_engine(self.url.reveal())
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def close(self) -> None:
        for store in self._stores:
            store.close()


def _with_tables(server: PostgresServer) -> str:
    """A database of that server in which `migrate` has made the tables, which takes PostgreSQL
    longer than to copy them."""
    if server.with_tables is None:
        name = server.new_database()
        engine = create_engine(server.url(name))
        with engine.begin() as connection:
            migrations.migrate(connection, now_s=0.0)
        engine.dispose()
        server.with_tables = name
    return server.with_tables


def rows(store: SqlStore, query: str) -> list[tuple[object, ...]]:
    """What a query finds beside the store."""
    with store.database.reading() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]
