"""Reads an auth database beside whoever writes it, for commands and checks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from auth_worker.errors import StoreMissingError
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.sqlite_database import DATABASE_NAME, reading_file

Reading = Callable[[], AbstractContextManager[Connection]]
"""Opens a connection that only reads, beside the one that writes; see `Database.reading`."""


def reader(data_dir: Path, url: DatabaseUrl | None) -> Reading:
    """Opens a connection that only reads.

    Args:
        data_dir: Holds the SQLite file.
        url: Of a PostgreSQL database, which goes before the file; None without one.

    Raises:
        StoreMissingError: There is no such file.
    """
    if url is not None:
        # The driver is large, and most auth workers never talk to it.
        from auth_worker.storage.postgres_database import reading_url

        return partial(reading_url, url)
    path = data_dir / DATABASE_NAME
    if not path.exists():
        raise StoreMissingError(f"there is no {path}")
    return partial(reading_file, path)
