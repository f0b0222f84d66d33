"""The commit thread: gathers operations into groups, makes each group durable, then answers."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from auth_worker.errors import AuthError, StoreError, StoreUnavailableError
from auth_worker.operations import Operation, Result
from auth_worker.store import Store

MAX_GROUP = 1024
MAX_BACKLOG = 100_000
LINGER_S = 0.1
"""How long what nobody waits for may wait for company; also how much a kill may forget of it."""

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0

OnDone = Callable[[Result], None]
Delivery = Sequence[tuple[OnDone, Result]]

_logger = logging.getLogger("penstock.auth")


class _Item(NamedTuple):
    operation: Operation
    on_done: OnDone | None


class Committer:
    """Makes operations durable, many in one transaction.

    While one group is being written the next one gathers, so the group grows with the load and a
    single settlement waits for one commit only. A group that the disk refuses is tried again until
    it is taken: nothing is dropped, `is_healthy` is False meanwhile, and the authority grants
    nothing (it fails closed).

    Args:
        store: Used by the commit thread alone once `start` was called.
        deliver: Takes the answers of a group, in order; called in the commit thread.
        on_fatal: Called once, in the commit thread, when the store is lost for good.
        max_backlog: With more operations waiting, `is_healthy` is False.
    """

    def __init__(
        self,
        store: Store,
        *,
        deliver: Callable[[Delivery], None],
        on_fatal: Callable[[StoreError], None],
        max_backlog: int = MAX_BACKLOG,
        linger_s: float = LINGER_S,
    ) -> None:
        self._store = store
        self._deliver = deliver
        self._on_fatal = on_fatal
        self._max_backlog = max_backlog
        self._linger_s = linger_s
        self._wake = threading.Condition()
        self._items: list[_Item] = []
        self._num_awaited = 0
        self._num_unanswered = 0
        self._num_groups = 0
        self._oldest_s = 0.0
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    @property
    def is_healthy(self) -> bool:
        """Whether operations become durable as fast as they come."""
        return not self._failing and len(self._items) < self._max_backlog

    @property
    def num_unanswered(self) -> int:
        """Operations that somebody waits for."""
        return self._num_unanswered

    @property
    def num_groups(self) -> int:
        """Groups committed so far; standing still with unanswered operations = stuck."""
        return self._num_groups

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, operation: Operation, on_done: OnDone | None = None) -> None:
        """Queue an operation.

        Args:
            operation: What is to be made durable.
            on_done: Gets the result through `deliver` after the commit. None for what nobody
                waits for, which may linger a moment.
        """
        with self._wake:
            if not self._items:
                self._oldest_s = time.monotonic()
                self._wake.notify()
            self._items.append(_Item(operation, on_done))
            if on_done is not None:
                self._num_unanswered += 1
                self._num_awaited += 1
                if self._num_awaited == 1:
                    self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        """Commit what is queued, then end the thread.

        Returns:
            False when the time ran out first; what is left was never acknowledged.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while group := self._next_group():
                delivery = self._commit(group)
                self._num_groups += 1
                with self._wake:
                    self._num_unanswered -= len(delivery)
                if delivery:
                    self._deliver(delivery)
        except StoreError as error:
            self._failing = True
            self._on_fatal(error)

    def _next_group(self) -> list[_Item]:
        """Wait for work; empty when closing and nothing is left."""
        with self._wake:
            while not (self._closing or self._num_awaited or len(self._items) >= MAX_GROUP):
                if not self._items:
                    self._wake.wait()
                    continue
                remaining_s = self._oldest_s + self._linger_s - time.monotonic()
                if remaining_s <= 0:
                    break
                self._wake.wait(remaining_s)
            group, self._items = self._items[:MAX_GROUP], self._items[MAX_GROUP:]
            self._num_awaited -= sum(item.on_done is not None for item in group)
            self._oldest_s = time.monotonic()
            return group

    def _commit(self, group: list[_Item]) -> Delivery:
        try:
            results = self._apply([item.operation for item in group])
        except StoreError:
            raise
        except Exception:
            # One operation spoils the transaction: alone, it can spoil nothing but itself.
            _logger.exception("a group of %d operations failed; trying them one by one", len(group))
            results = [self._apply_alone(item.operation) for item in group]
        return [
            (item.on_done, result)
            for item, result in zip(group, results, strict=True)
            if item.on_done is not None
        ]

    def _apply_alone(self, operation: Operation) -> Result:
        try:
            return self._apply([operation])[0]
        except StoreError:
            raise
        except Exception:
            _logger.exception("an operation could not be carried out: %s", type(operation).__name__)
            return AuthError("The auth worker could not carry this out.")

    def _apply(self, operations: Sequence[Operation]) -> list[Result]:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                results = self._store.apply(operations)
            except StoreUnavailableError as error:
                if not self._failing:
                    _logger.error("the database refuses writes, trying again: %s", error)
                self._failing = True
                if self._closing:
                    raise
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            else:
                if self._failing:
                    _logger.info("the database takes writes again")
                    self._failing = False
                return results
