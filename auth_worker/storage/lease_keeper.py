"""Keeps a database that was just taken over, until the thread that commits does so."""

import threading
from typing import Final, Self

from auth_worker.errors import StoreError, StoreUnavailableError
from auth_worker.storage.sql_store import SqlStore

LOOK_S: Final = 0.2


class LeaseKeeper:
    """Writes a transaction without content whenever the lease wants one, from a thread of its own.

    Reading a hundred thousand keys and making everything of them takes longer on a busy machine
    than a lease lasts. Whoever took over would be taken over itself, start again as a process, and
    leave the gateways without an auth worker meanwhile. Use it in a `with`.

    Args:
        store: Just opened.
    """

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._stopped = threading.Event()
        self._error: StoreError | None = None
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def stop(self) -> None:
        """Leave the lease to somebody else from here on; once more does nothing.

        Raises:
            StoreError: It was lost meanwhile, or the database is broken.
        """
        self.__exit__()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        database = self._store.database
        while not self._stopped.wait(LOOK_S):
            if not database.wants_renewal():
                continue
            try:
                self._store.apply([])
            except StoreUnavailableError:
                continue  # as long as the lease lasts, the next look may find it well
            except StoreError as error:
                self._error = error
                return
