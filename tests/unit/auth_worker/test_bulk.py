"""Statements over many rows are those that SQLAlchemy would make."""

import re

import pytest
from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.default import DefaultDialect

from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows
from auth_worker.storage.sql_store import SqlStore
from tests.fakes.auth_parts import booking

_CAST = re.compile(r"::\w+")
DIALECTS: list[DefaultDialect] = [
    sqlite.dialect(),
    postgresql.dialect(paramstyle="format"),  # type: ignore[no-untyped-call]
]
TABLES = [schema.ledger, schema.leases, schema.usage_by_hour, schema.audit_log]


class _Compiling:
    """A connection as far as texts are concerned."""

    def __init__(self, dialect: DefaultDialect) -> None:
        self.dialect = dialect


def _upsert(table: Table, dialect: str, num_rows: int) -> Insert:
    statement = insert_rows(dialect, table, num_rows)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={column.name: statement.excluded[column.name] for column in table.columns},
    )


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_an_insert_of_many_rows_is_that_of_one_with_more_values(
    table: Table, dialect: DefaultDialect
) -> None:
    compiled: list[int] = []

    def build(name: str, num_rows: int) -> Insert:
        compiled.append(num_rows)
        return _upsert(table, name, num_rows)

    statement = BulkStatement(build)
    for size in (1, 2, 8):
        text = statement._text(_Compiling(dialect), size)  # type: ignore[arg-type]
        made = str(_upsert(table, dialect.name, size).compile(dialect=dialect))
        # It casts the values of the first row alone, which says the same of all.
        assert _CAST.sub("", text) == _CAST.sub("", made)
    assert set(compiled) == {1}


def test_groups_of_every_size_are_stored(store: SqlStore) -> None:
    begun = 0
    for size in (1, 3, 200):
        store.apply([booking(f"lease:{begun + number:06}") for number in range(size)])
        begun += size
    with store.database.reading() as connection:
        assert len(connection.execute(schema.ledger.select()).all()) == begun
