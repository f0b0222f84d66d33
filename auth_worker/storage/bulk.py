"""Statements for many rows, compiled once and run in few steps.

The driver gives up the GIL for each step of SQLite. With a step a row, the thread that decides and
the one that commits would hand it to and fro for each settlement, which costs more than the step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Executable, Table, bindparam
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.elements import ClauseElement

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

    Insert = sqlite.Insert | postgresql.Insert

_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)


def insert_rows(dialect: str, table: Table, num_rows: int) -> "Insert":
    """An insert of so many whole rows, whose parameters come row by row.

    It may say what happens to rows that are there already; both dialects spell that alike.
    """
    values: list[dict[str, Any]] = [
        {column.name: bindparam(f"{column.name}_{row}") for column in table.columns}
        for row in range(num_rows)
    ]
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table).values(values)
    return sqlite.insert(table).values(values)


def run(connection: Connection, text: str, values: Sequence[Any] = ()) -> Any:
    """Run a statement past SQLAlchemy, which takes ten times as long as SQLite for a small one.

    Returns:
        The driver's cursor.

    Raises:
        sqlite3.Error: As the driver raises it.
    """
    return connection.connection.cursor().execute(text, values)


class BulkStatement:
    """A statement over some number of rows of positional values.

    Args:
        build: Makes it for a dialect and so many rows; its parameters come row by row.
    """

    def __init__(self, build: Callable[[str, int], Executable]) -> None:
        self._build = build
        self._texts: dict[tuple[str, int], str] = {}

    def execute(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run it over all rows, in order; how many rows of the database it changed."""
        num_changed = begin = 0
        for size in _SIZES:
            while len(rows) - begin >= size:
                values = tuple(chain.from_iterable(rows[begin : begin + size]))
                text = self._text(connection, size)
                num_changed += run(connection, text, values).rowcount
                begin += size
        return num_changed

    def _text(self, connection: Connection, size: int) -> str:
        dialect = connection.dialect.name
        text = self._texts.get((dialect, size))
        if text is None:
            text, _ = _compile(self._build(dialect, size), connection)
            self._texts[dialect, size] = text
        return text


class NamedStatement:
    """A statement over named values, run once a row; for a handful of rows."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, Sequence[str]]] = {}

    def execute(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run it for each row, in order."""
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = _compile(self._statement, connection)
            self._compiled[connection.dialect.name] = compiled
        text, names = compiled
        # psycopg sends them all before it waits for the first answer.
        values = [tuple(row[name] for name in names) for row in rows]
        if values:
            connection.connection.cursor().executemany(text, values)


def _compile(statement: Executable, connection: Connection) -> tuple[str, Sequence[str]]:
    """The text, and the names of its positional parameters in order."""
    assert isinstance(statement, ClauseElement)  # noqa: S101 - every statement of Core is one
    compiled = statement.compile(dialect=connection.dialect)
    return str(compiled), tuple(getattr(compiled, "positiontup", None) or ())
