"""Waits until the lease on a PostgreSQL database is free, and takes it.

Who stands by reads everything already while the lease of a holder that fell silent runs out: a
hundred thousand keys take longer than all else of a take-over. Each transaction counts one up
under the lease, so what was read is what there is when that count is the same at the end.
"""

import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from auth_worker.errors import StoreError, StoreLockedError, StoreUnavailableError
from auth_worker.records.operations import Snapshot
from auth_worker.storage.bulk import run
from auth_worker.storage.postgres_database import LEASE_S, PostgresDatabase
from auth_worker.storage.snapshot import read_snapshot
from auth_worker.storage.sql_store import SqlStore

POLL_S: Final = 0.25
SILENCE_S: Final = 0.9
"""A holder commits twice a second; one that didn't for so long is probably gone."""
REST: Final = 20
"""After reading, nothing is read again for so many times as long."""

_logger = logging.getLogger("penstock.auth")


class ReadAhead(NamedTuple):
    """What the database held.

    Attributes:
        seen: Epoch and number of commits of its holder then.
    """

    seen: tuple[int, int]
    snapshot: Snapshot


def read_ahead(database: PostgresDatabase, *, recent_since_ms: int) -> ReadAhead | None:
    """Everything at one moment, and which one; None when that can't be read, for any reason."""
    try:
        with database.reading() as connection:
            text = "SELECT epoch, num_commits FROM authority WHERE id = 1"
            row = run(connection, text).fetchone()
            if row is None:
                return None
            snapshot = read_snapshot(connection, recent_since_ms=recent_since_ms)
            return ReadAhead((row[0], row[1]), snapshot)
    except StoreError as error:
        # Its tables may be those of an older release; whoever takes it over brings them forward.
        _logger.debug("nothing was read ahead: %s", error.message)
        return None


def stand_by(
    database: PostgresDatabase,
    *,
    open_store: Callable[[PostgresDatabase], SqlStore],
    is_over: Callable[[], bool],
    sleep: Callable[[float], object],
    on_state: Callable[[str], None],
    read: Callable[[], ReadAhead | None],
    clock_s: Callable[[], float] = time.monotonic,
) -> tuple[SqlStore, Snapshot | None] | None:
    """Ask again and again; take the lease the moment that its holder is gone.

    Args:
        database: Not opened yet.
        open_store: Takes the lease and opens the store.
        is_over: Whether to give up.
        sleep: Waits so many seconds.
        on_state: Told in a few words why it waits, each time that this changes.
        read: Reads everything, `read_ahead`.
        clock_s: Seconds, for how long that takes.

    Returns:
        The store, and what it holds where that was read ahead; None when it is over.

    Raises:
        StoreError: The database can't be used, and no waiting helps.
    """
    state = ""
    ahead: ReadAhead | None = None
    rests_until_s = clock_s()
    while not is_over():
        try:
            if database.is_free():
                store = open_store(database)
                is_current = ahead is not None and ahead.seen == database.seen
                return store, ahead.snapshot if ahead is not None and is_current else None
            if ahead is not None and ahead.seen != database.seen:
                ahead = None  # it lives
            if ahead is None and database.silent_s >= SILENCE_S and clock_s() >= rests_until_s:
                began_s = clock_s()
                ahead = read()
                rests_until_s = clock_s() + REST * max(POLL_S, clock_s() - began_s)
                if ahead is not None:
                    continue  # the lease may be over by now
            now = f"standing by: {database.holder_seen} is active"
        except StoreLockedError:
            now = "standing by: another worker was faster"
        except StoreUnavailableError as error:
            now = f"waiting for the database: {error.message}"
        if now != state:
            state = now
            _logger.info("%s", state)
            on_state(state)
        left_s = LEASE_S - database.silent_s
        sleep(left_s if 0.0 < left_s < POLL_S else POLL_S)
    return None
