"""What the step loop is to do, in the order in which it came; filled by any thread."""

import queue
import threading
from dataclasses import dataclass

from engine_worker.core.score_task import ScoreTask
from engine_worker.serving.acceptance_queue import Accepted
from protocol.wire.messages import Abort, Cancel, ClearCache, Extend, Generate, OrphanUsageNoted


@dataclass(frozen=True, slots=True)
class GatewayCommand:
    """A command for the step loop, and whose it is.

    Attributes:
        received_at: Monotonic seconds; deadlines count from it, not from when the loop looks.
        accepted: A choice that was accepted elsewhere, or why it can't be; None for a command that
            the engine takes as it is, and for a choice that was aborted before it was accepted.
        is_abandoned: Its gateway went away before it was accepted.
    """

    gateway_id: str
    command: Generate | Extend | Abort | Cancel | OrphanUsageNoted | ClearCache
    received_at: float
    accepted: Accepted = None
    is_abandoned: bool = False


@dataclass(frozen=True, slots=True)
class GatewayLost:
    """A gateway is gone; what it wanted is to be dropped."""

    gateway_id: str


@dataclass(frozen=True, slots=True)
class ScoreCommand:
    """A Score that was tokenised."""

    task: ScoreTask


@dataclass(frozen=True, slots=True)
class StopLoop:
    """The step loop is to return."""


InboxItem = GatewayCommand | GatewayLost | ScoreCommand | StopLoop


class Inbox:
    """Items for the step loop, counted until it is done with them.

    Some are expected before they come: choices that a thread compiles or accepts first. The step
    loop can do nothing for those, so only what lies here is work that it might hang at.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_expected = 0
        self._num_present = 0

    @property
    def num_present(self) -> int:
        """Items that came and that the loop isn't done with."""
        return self._num_present

    @property
    def num_unfinished(self) -> int:
        """The same, with those that are expected."""
        with self._lock:
            return self._num_present + self._num_expected

    def expect(self) -> None:
        """One more item comes later."""
        with self._lock:
            self._num_expected += 1

    def expect_less(self) -> None:
        """One of those that were expected doesn't come."""
        with self._lock:
            self._num_expected -= 1

    def put(self, item: InboxItem, *, was_expected: bool = False) -> None:
        """Add an item at the end."""
        with self._lock:
            self._num_expected -= was_expected
            self._num_present += 1
        self._items.put(item)

    def stop(self) -> None:
        """Have the loop return when it has taken what is here."""
        self._items.put(StopLoop())

    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._items.empty()

    def take(self, timeout_s: float) -> InboxItem | None:
        """The first item; None when none comes in time. It counts until `done`."""
        try:
            return self._items.get(timeout_s > 0.0, timeout_s)
        except queue.Empty:
            return None

    def done(self, num_items: int) -> None:
        """So many items that were taken are handled."""
        with self._lock:
            self._num_present -= num_items

    def forget(self) -> None:
        """Nobody takes what is here."""
        with self._lock:
            self._num_present = 0
