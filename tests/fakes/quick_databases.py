"""What hundreds of tests would each work out anew about auth databases, worked out once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import LRUCache

from auth_worker.storage import migrations

_NUM_COMPILED = 2000
_LOOKS = ("PRAGMA", "SELECT")

_Statement = tuple[str, Any, bool]


@contextmanager
def quick_databases() -> Iterator[None]:
    """Engines share what they compiled, and an empty database gets its tables by the very
    statements that made the first one's, which `schema.py` and Alembic had spelt."""
    with pytest.MonkeyPatch.context() as patch:
        _share_compiled(patch)
        patch.setattr(migrations, "migrate", _Migration().migrate)
        yield


def _share_compiled(patch: pytest.MonkeyPatch) -> None:
    compiled: LRUCache[Any, Any] = LRUCache(_NUM_COMPILED)
    begin = Engine.__init__

    def begin_with_them(engine: Engine, *arguments: Any, **options: Any) -> None:
        begin(engine, *arguments, **options)
        engine.update_execution_options(compiled_cache=compiled)

    patch.setattr(Engine, "__init__", begin_with_them)
    for dialect in (SQLiteDialect_pysqlite, PGDialect_psycopg):
        # Part of the key of what is compiled; two of one class spell alike.
        patch.setattr(dialect, "__hash__", lambda self: hash((type(self), self.paramstyle)))
        patch.setattr(
            dialect,
            "__eq__",
            lambda self, other: (type(self), self.paramstyle) == (type(other), other.paramstyle),
        )


class _Migration:
    """`migrate` that spells the tables of an empty database once."""

    def __init__(self) -> None:
        self._migrate = migrations.migrate
        self._made: dict[str, list[_Statement]] = {}

    def migrate(
        self, connection: Connection, *, now_s: float, folder: Path = migrations.FOLDER
    ) -> int:
        if folder != migrations.FOLDER or migrations.version_of(connection) is not None:
            return self._migrate(connection, now_s=now_s, folder=folder)
        made = self._made.get(connection.dialect.name)
        if made is None:
            return self._learn(connection, now_s)
        for statement, parameters, is_many in made:
            if is_many:
                connection.exec_driver_sql(statement, list(parameters))
            else:
                connection.exec_driver_sql(statement, parameters or None)
        newest = migrations.newest_version()
        migrations._record(connection, newest, "all tables", now_s)
        return newest

    def _learn(self, connection: Connection, now_s: float) -> int:
        found: list[_Statement] = []

        def note(*told: Any) -> None:
            _, _, statement, parameters, _, is_many = told
            if not statement.lstrip().startswith(_LOOKS):
                found.append((statement, parameters, is_many))

        event.listen(connection, "before_cursor_execute", note)
        try:
            newest = self._migrate(connection, now_s=now_s)
        finally:
            event.remove(connection, "before_cursor_execute", note)
        # The last one says when, which each database says for itself.
        *self._made[connection.dialect.name], record = found
        assert "schema_version" in record[0]
        return newest
