"""The commit thread: gathers operations into groups, makes each group durable, then answers."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from auth_worker.errors import AuthError, StoreError, StoreUnavailableError
from auth_worker.records.operations import Operation, Result
from auth_worker.storage.backlog import MAX_GROUP, Backlog, Item, OnDone
from auth_worker.storage.store import Store

MAX_BACKLOG = 100_000
LINGER_S = 0.1
"""How long what nobody waits for may wait for company; also how much a kill may forget of it."""

INTERVAL_S = 0.01
"""Under load, groups begin no sooner after one another: a commit costs what fifty settlements do.
Only when as many wait as waited for the last one, the next begins at once.

Well below the time after which gateways write unacknowledged settlements to their own disks."""
MIN_BUSY_GROUP = 4
"""A group in which so many wait for an answer shows load."""

PATIENCE_S = 0.02
"""Settlements, whose answers no client waits for, gather for so long.

A commit of its own for each takes a lone client's next request the processor, and Python's lock.
Well below the time after which gateways write unacknowledged settlements to their own disks."""
MIN_PATIENT_GROUP = 32
"""So many needn't gather for longer, if they are no fewer than the last time."""

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0

Delivery = Sequence[tuple[OnDone, Result]]

_logger = logging.getLogger("penstock.auth")


class Committer:
    """Makes operations durable, many in one transaction.

    While one group is being written the next one gathers, so the group grows with the load, and
    what somebody waits for in a hurry waits for one commit only; see also `INTERVAL_S` and
    `PATIENCE_S`. A group that the disk refuses is tried again until it is taken: nothing is
    dropped, `is_healthy` is False meanwhile, and the authority grants nothing (it fails closed).

    Whoever submits takes no lock, mostly: a thread that decides would otherwise wait for the one
    that commits, which holds it whenever it looks what is due, and may lose the GIL there.
    The class is long because submitting, gathering, writing and trying again share one backlog.

    Args:
        store: Used by the commit thread alone once `start` was called.
        deliver: Takes the answers of a group, in order; called in the commit thread.
        on_fatal: Called once, in the commit thread, when the store is lost for good.
        max_backlog: With more operations waiting, `is_healthy` is False.
        linger_s: See `LINGER_S`.
        interval_s: See `INTERVAL_S`.
        patience_s: See `PATIENCE_S`.
    """

    def __init__(
        self,
        store: Store,
        *,
        deliver: Callable[[Delivery], None],
        on_fatal: Callable[[StoreError], None],
        max_backlog: int = MAX_BACKLOG,
        linger_s: float = LINGER_S,
        interval_s: float = INTERVAL_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._deliver = deliver
        self._on_fatal = on_fatal
        self._max_backlog = max_backlog
        self._linger_s = linger_s
        self._patience_s = patience_s
        self._interval_s = interval_s
        # Not in the backlog yet. Only appended to without the lock, at any moment.
        self._incoming: deque[tuple[Operation, OnDone | None, float, bool]] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._backlog = Backlog(linger_s, patience_s)
        self._num_waiting = 0  # in the backlog
        # About so many wait for an answer and are in no group, in a hurry and without.
        self._fresh_urgent, self._fresh_patient = 0, 0
        self._num_in_group = 0  # wait for the group that is being written
        self._num_groups = 0
        self._next_s = 0.0  # the next group begins no sooner, unless all of the last one are back
        # So many waited for the last group, in a hurry and without.
        self._last_urgent, self._last_patient = 1, MIN_PATIENT_GROUP
        self._sleeps_until_s = 0.0  # nobody sleeps, when it is over
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    @property
    def is_healthy(self) -> bool:
        """Whether operations become durable as fast as they come."""
        return not (self._failing or self.is_full)

    @property
    def is_full(self) -> bool:
        """Whether so much waits already that no more should be added."""
        if self._num_waiting + len(self._incoming) < self._max_backlog:
            return False
        with self._lock:
            self._take_in()  # where some of it may be needless
            return self._num_waiting >= self._max_backlog

    @property
    def num_unanswered(self) -> int:
        """Operations that somebody waits for."""
        with self._lock:
            self._take_in()
            return self._backlog.num_urgent + self._backlog.num_patient + self._num_in_group

    @property
    def num_groups(self) -> int:
        """Groups committed so far; standing still with unanswered operations = stuck."""
        return self._num_groups

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(
        self, operation: Operation, on_done: OnDone | None = None, *, is_patient: bool = False
    ) -> None:
        """Queue an operation.

        Args:
            operation: What is to be made durable.
            on_done: Gets the result through `deliver` after the commit. None for what nobody
                waits for, which may linger a moment.
            is_patient: Whether nothing else waits for `on_done`; see `PATIENCE_S`.
        """
        now_s = time.monotonic()
        self._incoming.append((operation, on_done, now_s, is_patient))
        is_whole = len(self._incoming) >= MAX_GROUP
        if on_done is None:
            latest_s = now_s + self._linger_s
        elif is_patient:
            self._fresh_patient += 1
            latest_s = now_s + self._patience_s
            is_whole |= self._fresh_patient >= self._last_patient
        else:
            self._fresh_urgent += 1
            latest_s = self._next_s
            is_whole |= self._fresh_urgent >= self._last_urgent
        # The thread is mostly at work, or wakes soon enough by itself.
        if self._sleeps_until_s <= latest_s and not is_whole:
            return
        if self._sleeps_until_s or len(self._incoming) >= MAX_GROUP:
            self._look()

    def _look(self) -> None:
        """Wake the thread if it would sleep too long, and keep the backlog as short as it can be.

        However long the disk is stuck, what is coalesced there doesn't pile up before it.
        """
        with self._lock:  # without the condition's own steps around it
            self._take_in()
            now_s = time.monotonic()
            if self._sleeps_until_s > now_s and self._due_s(now_s) < self._sleeps_until_s:
                self._sleeps_until_s = 0.0
                self._wake.notify()

    def _take_in(self) -> None:
        """Let the backlog have what was submitted, in order; with the lock."""
        incoming, backlog = self._incoming, self._backlog
        while incoming:
            operation, on_done, since_s, is_patient = incoming.popleft()
            backlog.add(operation, on_done, since_s, is_patient=is_patient)
        self._num_waiting = len(backlog)

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
                self._num_in_group = 0
                if delivery:
                    self._deliver(delivery)
        except StoreError as error:
            self._failing = True
            self._on_fatal(error)

    def _next_group(self) -> list[Item]:
        """Wait for work; empty when closing and nothing is left."""
        with self._wake:
            while True:
                self._take_in()
                now_s = time.monotonic()
                if self._closing:
                    return self._take(now_s, everything=True)
                due_s = self._due_s(now_s)
                if due_s <= now_s:
                    break
                self._sleeps_until_s = due_s
                if not self._incoming:  # whoever came before that was set woke nobody
                    self._wake.wait(None if due_s == math.inf else due_s - now_s)
                self._sleeps_until_s = 0.0
            backlog = self._backlog
            self._last_urgent = max(1, min(backlog.num_urgent, MAX_GROUP))
            self._last_patient = max(MIN_PATIENT_GROUP, min(backlog.num_patient, MAX_GROUP))
            is_busy = self._last_urgent >= MIN_BUSY_GROUP
            self._next_s = now_s + self._interval_s if is_busy else now_s
            return self._take(now_s)

    def _take(self, now_s: float, *, everything: bool = False) -> list[Item]:
        group = self._backlog.take(now_s, everything=everything)
        self._fresh_urgent = self._backlog.num_urgent
        self._fresh_patient = self._backlog.num_patient
        self._num_in_group = sum(item.on_done is not None for item in group)
        self._num_waiting = len(self._backlog)
        return group

    def _due_s(self, now_s: float) -> float:
        """When the next group is to begin; infinite when there is nothing to write."""
        backlog = self._backlog
        if backlog.is_full:
            return now_s
        # Whoever had an answer and goes on waits again: nobody else will come.
        if backlog.num_urgent >= self._last_urgent or backlog.num_patient >= self._last_patient:
            return now_s
        if backlog.num_urgent:
            return max(now_s, self._next_s)
        due_s = backlog.due_s()
        return math.inf if due_s is None else due_s

    def _commit(self, group: list[Item]) -> Delivery:
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
            _logger.exception("an operation failed: %s", type(operation).__name__)
            return AuthError("The auth worker could not complete this operation.")

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
                    _logger.info("the database accepts writes again")
                    self._failing = False
                return results
