"""Statements for many rows, compiled once and run in few steps.

The driver gives up the GIL for each step of SQLite. With a step a row, the thread that decides and
the one that commits would hand it to and fro for each settlement, which costs more than the step.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Executable, Insert, Table, bindparam
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.elements import ClauseElement

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

    DialectInsert = sqlite.Insert | postgresql.Insert

_VALUES = " VALUES "
_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)


def insert_rows(dialect: str, table: Table, num_rows: int) -> "DialectInsert":
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


def update_rows(table: str, changes: str, key: str, num_columns: int) -> "Build":
    """An update of rows by values that come with it: of each row its key, then what changes it.

    SQLite (since 3.33) and PostgreSQL spell it alike, and name the values `column1` and so on. No
    key may come twice.

    Args:
        table: Its name.
        changes: What to set, in terms of the table's columns and `v.column2` onwards.
        key: The column that `v.column1` names.
        num_columns: Of one row of values.
    """

    def build(dialect: str, num_rows: int) -> str:
        mark = "%s" if dialect == "postgresql" else "?"
        row = f"({', '.join([mark] * num_columns)})"
        values = ", ".join([row] * num_rows)
        return (
            f"UPDATE {table} SET {changes} FROM (VALUES {values}) AS v"  # noqa: S608 - ours
            f" WHERE {table}.{key} = v.column1"
        )

    return build


Build = Callable[[str, int], Executable | str]
"""Makes a statement for a dialect and a number of rows; its parameters come row by row."""


class BulkStatement:
    """A statement over some number of rows of positional values.

    Args:
        build: See `Build`.
    """

    def __init__(self, build: Build) -> None:
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
            text = self._texts[dialect, size] = self._compiled(connection, size)
        return text

    def _compiled(self, connection: Connection, size: int) -> str:
        dialect = connection.dialect.name
        built = self._build(dialect, 1)
        if isinstance(built, Insert):
            return _with_rows(_compile(built, connection), size)
        built = self._build(dialect, size)
        return built if isinstance(built, str) else _compile(built, connection)


def _with_rows(text: str, num_rows: int) -> str:
    """An insert of one row as one of so many.

    SQLAlchemy needs a tenth of a second for the text of some hundred rows, in which this process
    would decide nothing.
    """
    begin = text.index(_VALUES) + len(_VALUES)
    row = text[begin : text.index(")", begin) + 1]
    return f"{text[:begin]}{', '.join([row] * num_rows)}{text[begin + len(row) :]}"


def _compile(statement: Executable, connection: Connection) -> str:
    """The text of a statement with positional parameters."""
    assert isinstance(statement, ClauseElement)  # noqa: S101 - every statement of Core is one
    return str(statement.compile(dialect=connection.dialect))
