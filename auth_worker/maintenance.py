"""What an operator does to the auth database: `python -m auth_worker.maintenance COMMAND`.

`penstock auth backup`, `restore`, `check` and `downgrade` run it. The database is the one of
PENSTOCK_DATABASE_URL (or _FILE) where that is set, else the SQLite file in the data directory.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from auth_worker.auditing.database_check import check_database
from auth_worker.config import audit_key_path, database_url
from auth_worker.errors import StoreError, StoreLockedError
from auth_worker.storage import migrations
from auth_worker.storage.audit_key import NOTES_NAME, CheckpointNotes, load_signer
from auth_worker.storage.backup import RowCounts, back_up, restore_file, restore_url
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.postgres_database import (
    LEASE_S,
    OPENING_IDLE_TIMEOUT_S,
    PostgresDatabase,
)
from auth_worker.storage.reading import reader
from auth_worker.storage.sqlite_database import SqliteDatabase
from protocol.errors import ConfigurationError

DONE, BROKEN, FAILED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Carry out one command.

    Returns:
        0 when it is done, 1 when a check found something, 2 when it can't be done; then stderr has
        one line that says why. 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="auth_worker.maintenance", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="Folder of the auth database.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("backup", "Copy everything into a new file; the server may run meanwhile."),
        ("restore", "Fill an empty database from a backup; no auth worker may run."),
    ):
        commands.add_parser(name, help=text).add_argument("file", type=Path)
    commands.add_parser("check", help="Look through everything; the server may run meanwhile.")
    back = commands.add_parser("downgrade", help="Go back to the tables of an older release.")
    back.add_argument("version", type=int, help="Of the schema.")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "check":
            return _check(options.data_dir, environ)
        if options.command == "downgrade":
            return _downgrade(options.data_dir, environ, options.version)
        if options.command == "backup":
            source = reader(options.data_dir, database_url(environ))
            _say(f"{options.file} holds", back_up(source, options.file))
        else:
            _say(f"{options.file} was restored:", _restore(options.file, options.data_dir, environ))
    except (StoreError, ConfigurationError) as error:
        sys.stderr.write(f"{error.message}\n")
        return FAILED
    except OSError as error:
        sys.stderr.write(f"{error.filename or options.data_dir}: {error.strerror}.\n")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def _check(data_dir: Path, environ: Mapping[str, str]) -> int:
    outcome = DONE
    findings = check_database(
        reader(data_dir, database_url(environ)),
        signer=load_signer(audit_key_path(environ, data_dir), may_make=False),
        noted=CheckpointNotes(data_dir / NOTES_NAME).read(),
    )
    for holds, text in findings:
        sys.stdout.write(f"{'ok' if holds else 'NOT OK'}: {text}\n")
        outcome = outcome if holds else BROKEN
    return outcome


def _restore(file: Path, data_dir: Path, environ: Mapping[str, str]) -> RowCounts:
    url = database_url(environ)
    if url is None:
        return restore_file(file, data_dir)
    with closing(_opened(url)) as database:
        return restore_url(file, database, data_dir)


def _downgrade(data_dir: Path, environ: Mapping[str, str], version: int) -> int:
    url = database_url(environ)
    database = SqliteDatabase(data_dir) if url is None else _unheld(_opened(url))
    with closing(database), database.transaction() as connection:
        migrations.downgrade(connection, version, now_s=time.time())
    sys.stdout.write(f"{database} has schema version {version} now.\n")
    return DONE


def _opened(url: DatabaseUrl) -> PostgresDatabase:
    return PostgresDatabase(url, idle_timeout_s=OPENING_IDLE_TIMEOUT_S)


def _unheld(database: PostgresDatabase) -> PostgresDatabase:
    """A database that no auth worker uses, or has used for the time of a lease."""
    ends_at = time.monotonic() + LEASE_S + 1.0
    while not database.is_free():
        if time.monotonic() >= ends_at:
            database.close()
            raise StoreLockedError(f"An auth worker holds {database}; stop all of them first.")
        time.sleep(0.1)
    return database


def _say(what: str, counts: RowCounts) -> None:
    shown = ("keys", "leases", "ledger", "ledger_hours", "audit_log")
    rows = ", ".join(f"{counts[name]} {name}" for name in shown)
    sys.stdout.write(f"{what} {sum(counts.values())} rows ({rows}).\n")


if __name__ == "__main__":
    os.umask(0o077)  # what is written here holds digests of keys
    sys.exit(main())
