"""Brings an auth database to the newest tables, or back to older ones; Alembic runs the versions.

A database says its version twice: in `schema_version`, which every release reads and which refuses
databases newer than itself, and in Alembic's own table.
"""

import logging
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, delete, insert, inspect, select
from sqlalchemy.sql import func

from auth_worker.errors import StoreError, StoreForeignError, StoreTooNewError
from auth_worker.storage import schema

FOLDER: Final = Path(__file__).with_name("migration")
FIRST_VERSION: Final = 1
OLDEST_OF_POSTGRESQL: Final = 4
"""Releases of before knew no PostgreSQL, so there is no way back to them."""

_logger = logging.getLogger("penstock.auth")


def newest_version(folder: Path = FOLDER) -> int:
    """Of the schema, as the names of the files say: `vNNNN_words.py`."""
    return max(int(path.name[1:5]) for path in (folder / "versions").glob("v[0-9]*.py"))


def migrate(connection: Connection, *, now_s: float, folder: Path = FOLDER) -> int:
    """Bring the database to the newest version, inside the caller's transaction.

    An empty database gets the tables of `schema.py` at once; an older one runs what it has not
    seen.

    Returns:
        The version of the schema.

    Raises:
        StoreTooNewError: A newer Penstock wrote this database.
        StoreForeignError: The tables there are not Penstock's.
    """
    newest = newest_version(folder)
    current = version_of(connection)
    if current is None:
        schema.metadata.create_all(connection)
        _Alembic(connection, folder).stamp(newest)
        _record(connection, newest, "all tables", now_s)
        return newest
    if current > newest:
        raise StoreTooNewError(
            f"The auth database has schema version {current}, this Penstock knows versions up to"
            f" {newest}. Start the Penstock that wrote it, or restore a backup."
        )
    if current < newest:
        alembic = _Alembic(connection, folder)
        alembic.stamp(current)  # databases of before Alembic don't know it
        alembic.upgrade(newest)
        for version in range(current + 1, newest + 1):
            _record(connection, version, alembic.description(version), now_s)
        _logger.info("the auth database went from schema version %d to %d", current, newest)
    return newest


def downgrade(connection: Connection, version: int, *, now_s: float, folder: Path = FOLDER) -> None:
    """Bring the database back to an older version, inside the caller's transaction.

    What the older tables can't hold is lost, and a key whose bounds an older release would not heed
    is revoked; each version's file says what.

    Raises:
        StoreError: There is no such version, or the database is older already.
    """
    current = version_of(connection)
    if current is None:
        raise StoreError("There are no tables to bring back to an older version.")
    is_sqlite = connection.dialect.name == "sqlite"
    oldest = FIRST_VERSION if is_sqlite else OLDEST_OF_POSTGRESQL
    if not oldest <= version <= current:
        raise StoreError(
            f"The auth database has schema version {current}; it can go back to {oldest} to"
            f" {current}, not to {version}."
        )
    _Alembic(connection, folder).downgrade(version)
    table = schema.schema_version
    connection.execute(delete(table).where(table.c.version > version))
    if connection.execute(select(func.max(table.c.version))).scalar_one() != version:
        _record(connection, version, f"back from {current}", now_s)
    _logger.info("the auth database went back from schema version %d to %d", current, version)


def version_of(connection: Connection) -> int | None:
    """The version of the schema; None when the database is empty.

    Raises:
        StoreForeignError: It holds tables, and they are not Penstock's.
    """
    names = set(inspect(connection).get_table_names())
    if not names:
        return None
    ours = {table.name for table in (schema.schema_version, schema.authority, schema.keys)}
    version: int | None = None
    if ours <= names:
        column = schema.schema_version.c.version
        version = connection.execute(select(func.max(column))).scalar_one()
    if version is None:
        some = ", ".join(sorted(names)[:3])
        raise StoreForeignError(
            f"The database holds tables that are not Penstock's ({some}). Give the auth worker a"
            " database of its own, or restore a backup."
        )
    return version


def is_made(connection: Connection) -> bool:
    """Whether the database holds tables of ours."""
    return inspect(connection).has_table(schema.schema_version.name)


class _Alembic:
    """Alembic's commands on one connection, in its transaction."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        # Says each step, and what it loads, at INFO in words of its own.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # Only here: most starts have nothing to migrate.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        self._command = command
        self._config = Config()
        self._config.set_main_option("script_location", str(folder))
        self._config.set_main_option("path_separator", "os")
        self._config.attributes["connection"] = connection
        self._scripts = ScriptDirectory.from_config(self._config)

    def stamp(self, version: int) -> None:
        """Say that this version is there."""
        self._command.stamp(self._config, f"{version:04}")

    def upgrade(self, version: int) -> None:
        """Run forward."""
        self._command.upgrade(self._config, f"{version:04}")

    def downgrade(self, version: int) -> None:
        """Run backward."""
        self._command.downgrade(self._config, f"{version:04}")

    def description(self, version: int) -> str:
        """The first line of a version's file."""
        script = self._scripts.get_revision(f"{version:04}")
        return script.doc.rstrip(".")


def _record(connection: Connection, version: int, description: str, now_s: float) -> None:
    connection.execute(
        insert(schema.schema_version).values(
            version=version, description=description, applied_at=int(now_s)
        )
    )
