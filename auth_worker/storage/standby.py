"""Waits until the lease on a PostgreSQL database is free, and takes it."""

import logging
from collections.abc import Callable
from typing import Final

from auth_worker.errors import StoreLockedError, StoreUnavailableError
from auth_worker.storage.postgres_database import PostgresDatabase
from auth_worker.storage.sql_store import SqlStore

POLL_S: Final = 0.25

_logger = logging.getLogger("penstock.auth")


def stand_by(
    database: PostgresDatabase,
    *,
    open_store: Callable[[PostgresDatabase], SqlStore],
    is_over: Callable[[], bool],
    sleep: Callable[[float], object],
    on_state: Callable[[str], None],
) -> SqlStore | None:
    """Ask again and again; take the lease the moment that its holder is gone.

    Args:
        database: Not opened yet.
        open_store: Takes the lease and opens the store.
        is_over: Whether to give up.
        sleep: Waits so many seconds.
        on_state: Told in a few words why it waits, each time that this changes.

    Returns:
        The store; None when it is over.

    Raises:
        StoreError: The database can't be used, and no waiting helps.
    """
    state = ""
    while not is_over():
        try:
            if database.is_free():
                return open_store(database)
            now = f"standing by: {database.holder_seen} is active"
        except StoreLockedError:
            now = "standing by: another worker was faster"
        except StoreUnavailableError as error:
            now = f"waiting for the database: {error.message}"
        if now != state:
            state = now
            _logger.info("%s", state)
            on_state(state)
        sleep(POLL_S)
    return None
