"""Looks at the database's files before they are used: lost, empty and damaged ones are refused."""

import logging
from pathlib import Path

from sqlalchemy import Connection

from auth_worker.errors import StoreDamagedError, StoreMissingError
from auth_worker.storage import migrations, schema, write_ahead_log
from auth_worker.storage.durable_file import unusable, write_durably

MAX_FULL_CHECK_BYTES = 256 * 1024 * 1024
"""Of a larger database the ledger, nearly all of it, is not looked through at the start."""

_MARKER_TEXT = """\
This file says that there was an auth database beside it, so that a lost one is not replaced by an
empty one. Remove it only to start over: without keys, limits and usage.
"""

_logger = logging.getLogger("penstock.auth")


def marker_of(database: Path) -> Path:
    """The file that says that there was a database."""
    return database.with_name(database.name + ".created")


def mark(database: Path) -> None:
    """Note that there is a database; to be called once it is durable.

    Raises:
        StoreError: The note can't be written.
    """
    marker = marker_of(database)
    if not marker.exists():
        write_durably(marker, _MARKER_TEXT)


def check_presence(database: Path) -> None:
    """Refuse to make a new database where there was one.

    Raises:
        StoreMissingError: There was one, and it is gone or empty.
    """
    if not marker_of(database).exists():
        return
    if not database.exists():
        raise _lost(database, "is missing")
    if database.stat().st_size == 0:
        raise _lost(database, "is empty")


def check_log(database: Path) -> None:
    """Refuse a write-ahead log that lost commits; the database must not be open.

    Raises:
        StoreDamagedError: It is damaged.
        StoreError: It can't be read.
    """
    log = database.with_name(database.name + "-wal")
    try:
        damage = write_ahead_log.damage_of(log)
    except OSError as error:
        raise unusable(log, error) from error
    if damage is not None:
        raise StoreDamagedError(
            f"{log} is damaged: {damage}. Changes of {database.name} that were only there are lost."
            f" Restore a backup of {database} and remove {log.name}, or move {log.name} away to go"
            f" on with the older state in {database.name}."
        )


def check_pages(connection: Connection, database: Path) -> None:
    """Look through the database, within seconds; before its tables are used.

    Raises:
        StoreMissingError: There were tables, and they are gone.
        StoreDamagedError: A page is damaged.
    """
    if database.stat().st_size <= MAX_FULL_CHECK_BYTES:
        checks = ["PRAGMA quick_check(1)"]
    else:
        tables = [name for name in schema.metadata.tables if name != schema.ledger.name]
        checks = [f"PRAGMA quick_check({name})" for name in tables]
        _logger.warning(
            "%s is large; its ledger is not checked (PRAGMA integrity_check does)", database
        )
    for check in checks:
        found = connection.exec_driver_sql(check).scalars().all()
        if list(found) != ["ok"]:
            raise damaged(database, str(found[0]))
    if marker_of(database).exists() and not migrations.is_made(connection):
        raise _lost(database, "holds no tables")


def damaged(database: Path, how: str) -> StoreDamagedError:
    """What to raise when SQLite finds the file itself wrong."""
    return StoreDamagedError(
        f"{database} is damaged: {' '.join(how.split())}. Restore a backup of it and remove"
        f" {database.name}-wal, or save what can be read:"
        f" sqlite3 {database.name} .recover | sqlite3 new.sqlite3"
    )


def _lost(database: Path, how: str) -> StoreMissingError:
    marker = marker_of(database)
    return StoreMissingError(
        f"{database} {how}, but {marker.name} says that there was a database. Restore a backup of"
        f" it, or remove {marker} to start over, which loses all keys, limits and usage."
    )
