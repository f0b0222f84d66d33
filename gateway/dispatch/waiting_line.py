"""Who waits for a slot of one model: in fair order, within bounds, with the time that it takes."""

import asyncio
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway.dispatch.fair_queue import FairQueue
from gateway.dispatch.slots import Accepts, Share, Slot
from gateway.errors import OverloadedError

MIN_TENANT_PLACES = 16
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
"""Above a minute official clients of older versions give up instead of waiting."""
_RATE_WINDOW = 128


@dataclass(slots=True, eq=False)
class Waiter:
    """A request in the line.

    Attributes:
        tokens: Upper bound of prompt and output.
        cost: What its tenant is charged, as far as it can be known.
        accepts: Which engines can do it.
        future: Gets the slot.
        is_extra: Of a request that is in already: the bounds don't apply.
    """

    tenant: str
    priority: int
    tokens: int
    cost: int
    accepts: Accepts
    future: "asyncio.Future[Slot]"
    is_extra: bool


class WaitingLine:
    """The waiters of one model and kind of slot.

    A tenant may hold as many places as are still free (Choudhury and Hahne, Dynamic queue length
    thresholds, 1998), and always `MIN_TENANT_PLACES` while there is one: alone it gets at most
    half of them, two that flood a third each, and whoever comes new finds room.

    Args:
        max_waiting: Places.
        clock: Monotonic seconds.
        overload_message: What is said where no place is left; empty says how many wait.

    Attributes:
        num_in_line: All waiters.
        num_waiting: Those to which the bounds apply.
        turn: Breaks ties between engines.
    """

    def __init__(
        self, max_waiting: int, clock: Callable[[], float], overload_message: str = ""
    ) -> None:
        self._overload_message = overload_message
        self.num_in_line = 0
        self.num_waiting = 0
        self.turn: Iterator[int] = itertools.count()
        self._max_waiting = max_waiting
        self._clock = clock
        self._queue: FairQueue[Waiter] = FairQueue()
        self._by_tenant: Counter[str] = Counter()
        self._departures: deque[tuple[float, str]] = deque(maxlen=_RATE_WINDOW)

    def __iter__(self) -> Iterator[Waiter]:
        """Everybody, in no particular order; the line may change meanwhile."""
        return iter(self._queue)

    def check_room(self, model: str, tenant: str) -> None:
        """Refuse one more request of a tenant that finds no place.

        Raises:
            OverloadedError: All places are taken, or too many of them by this tenant.
        """
        free = self._max_waiting - self.num_waiting
        if free <= 0:
            raise OverloadedError(
                self._overload_message
                or f"{self.num_waiting} requests wait for the model `{model}` already; "
                "please try again later.",
                retry_after_s=self.retry_after_s(),
            )
        own = self._by_tenant[tenant]
        if own >= max(MIN_TENANT_PLACES, free):
            raise OverloadedError(
                self._overload_message
                or f"{own} requests of yours wait for the model `{model}` already, and one caller "
                f"may not take all of the {self._max_waiting} places; please try again later.",
                retry_after_s=self.retry_after_s(tenant),
            )

    def add(self, waiter: Waiter) -> None:
        """One more, whether or not there is room."""
        self._queue.push(
            waiter,
            tenant=waiter.tenant,
            priority=waiter.priority,
            cost=waiter.cost,
            now=self._clock(),
        )
        self._count(waiter, 1)

    def discard(self, waiter: Waiter) -> None:
        """It gave up; idempotent."""
        if waiter in self._queue:
            self._queue.discard(waiter)
            self._count(waiter, -1)

    def take(self, waiter: Waiter) -> Share:
        """It is admitted; what its slot takes of its tenant's share."""
        owed_part = self._queue.take(waiter)
        self._count(waiter, -1)
        self.note_departure(waiter.tenant, is_extra=waiter.is_extra)
        return Share(waiter.tenant, waiter.priority, waiter.tokens, waiter.cost, owed_part)

    def note_departure(self, tenant: str, *, is_extra: bool) -> None:
        """A request of a tenant was admitted, from the line or without waiting."""
        if not is_extra:
            self._departures.append((self._clock(), tenant))

    def in_order(self) -> Iterator[Waiter]:
        """Everybody in the order of service; the line may not change meanwhile."""
        return self._queue.in_order(self._clock())

    def charge(self, share: Share, tokens: int) -> None:
        """An admitted request needed more tokens than its cost; fewer if negative."""
        self._queue.charge(
            tenant=share.tenant,
            priority=share.priority,
            tokens=tokens,
            owed_part=share.owed_part,
        )

    def retry_after_s(self, tenant: str | None = None) -> float:
        """When those who wait now will have been admitted, at the rate measured last.

        Args:
            tenant: Only its requests and its rate count; None for all.
        """
        if len(self._departures) < 2:
            return MIN_RETRY_AFTER_S
        span_s = self._clock() - self._departures[0][0]
        num_admitted = sum(tenant in (None, admitted) for _, admitted in self._departures)
        num_waiting = self.num_waiting if tenant is None else self._by_tenant[tenant]
        wait_s = span_s / max(1, num_admitted) * max(1, num_waiting)
        return float(min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, math.ceil(wait_s))))

    def _count(self, waiter: Waiter, change: int) -> None:
        self.num_in_line += change
        if waiter.is_extra:
            return
        self.num_waiting += change
        self._by_tenant[waiter.tenant] += change
        if not self._by_tenant[waiter.tenant]:
            del self._by_tenant[waiter.tenant]
