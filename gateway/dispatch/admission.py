"""The bounded queue before the engines: fair between tenants, by priority, within credits."""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gateway.dispatch.fair_queue import CostEstimate, FairQueue
from gateway.dispatch.returning import ReturningWaiter, ReturningWork
from gateway.dispatch.seats import Accepts, EngineHandle, Seat, Share, least_loaded
from gateway.errors import OverloadedError, WorkerUnavailableError

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 120.0
_RATE_WINDOW = 128


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request in the queue; `is_extra` as in `acquire`."""

    tenant: str
    priority: int
    tokens: int
    cost: int
    future: "asyncio.Future[Seat]"
    is_extra: bool


@dataclass(slots=True)
class _ModelQueue:
    """The waiters of one model.

    Attributes:
        waiters: Who waits for a first seat.
        returning: Who was at an engine that is gone, in order; they go before everybody else.
        num_waiting: Waiters to which the bound applies.
        departures: When the latest seats were given.
        turn: Breaks ties between engines.
    """

    waiters: FairQueue[_Waiter] = field(default_factory=FairQueue)
    returning: ReturningWork = field(default_factory=ReturningWork)
    num_waiting: int = 0
    departures: deque[float] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW))
    turn: Iterator[int] = field(default_factory=itertools.count)


class Admission:
    """Hands out seats at engines.

    Waiting requests are ordered by priority with aging, then fair between tenants by tokens: a
    tenant with a thousand requests delays another's first one by one request, not by a thousand.

    Args:
        engines: The live engines of a model.
        max_queue: Requests that may wait for one model.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        engines: Callable[[str], Sequence[EngineHandle]],
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = engines
        self._max_queue = max_queue
        self._clock = clock
        self._queues: dict[str, _ModelQueue] = {}
        self._costs = CostEstimate()

    async def acquire(
        self, model: str, *, tenant: str, priority: int, tokens: int, is_extra: bool = False
    ) -> Seat:
        """A seat at the least loaded engine that has credit; waits for its turn.

        Args:
            model: A known model.
            tenant: Whose turn it is.
            priority: Lower goes first.
            tokens: Upper bound of prompt and output.
            is_extra: A further choice of a request that is in already: its client has been let
                in, so the bound of the queue doesn't apply, and it waits while no engine is there.

        Raises:
            OverloadedError: The queue is full.
            WorkerUnavailableError: No engine of this model is there, or the last one went.
        """
        queue = self._queues.setdefault(model, _ModelQueue())
        engines = self._engines(model)
        if not engines and not is_extra:
            raise _no_engine(model)
        if not queue.waiters and not queue.returning.holds_up(engines):
            engine = least_loaded(engines, tokens, next(queue.turn))
            if engine is not None:
                seat = self._seat(engine, tokens, queue)
                seat.share = Share(tenant, priority, tokens, cost=0)
                return seat
        if not is_extra and queue.num_waiting >= self._max_queue:
            raise OverloadedError(
                f"{queue.num_waiting} requests wait for the model `{model}` already; "
                "please try again later.",
                retry_after_s=self.retry_after_s(model),
            )
        waiter = self._enqueue(queue, tenant, priority, tokens, is_extra=is_extra)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                if waiter.future.exception() is None:
                    self.release(waiter.future.result())
            else:
                waiter.future.cancel()
                self._leave(queue, waiter)
                self.pump(model)  # the next one may fit where this one did not
            raise

    async def acquire_again(
        self,
        model: str,
        *,
        tokens: int,
        accepts: Accepts,
        is_alone: bool = False,
        is_patient: bool = True,
    ) -> Seat:
        """A seat for work that lost its engine: before everybody who waits for a first one.

        Without a fitting engine it waits for one to come; its caller bounds the time.

        Args:
            model: A known model.
            tokens: Upper bound of prompt and output.
            accepts: Which engines can go on with it.
            is_alone: Take an engine with nothing else on it, and keep it so until `share`.
            is_patient: Wait also while only engines that can't go on with it are there.

        Raises:
            WorkerLostError: It isn't patient, and only such engines are there.
        """
        queue = self._queues.setdefault(model, _ModelQueue())
        future: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        waiter = ReturningWaiter(tokens, accepts, is_alone, is_patient, future)
        queue.returning.add(waiter)
        self.pump(model)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            else:
                future.cancel()
                queue.returning.discard(waiter)
                self.pump(model)
            raise

    def share(self, seat: Seat) -> None:
        """Let others work beside a seat that was alone; idempotent."""
        if seat.is_alone:
            seat.is_alone = False
            seat.engine.is_reserved = False
            self.pump(seat.engine.offer.model)

    def resize(self, seat: Seat, tokens: int) -> None:
        """Replace the upper bound of a seat by a better number."""
        if not seat.is_released:
            seat.engine.num_tokens += tokens - seat.tokens
            seat.tokens = tokens

    def move(self, seat: Seat, engine: EngineHandle) -> None:
        """Exchange a seat for one at another engine that can take its tokens."""
        if seat.is_released or engine is seat.engine:
            return
        seat.engine.num_requests -= 1
        seat.engine.num_tokens -= seat.tokens
        seat.engine = engine
        engine.num_requests += 1
        engine.num_tokens += seat.tokens
        self.pump(engine.offer.model)

    def release(self, seat: Seat, used_tokens: int | None = None) -> None:
        """Give a seat back; idempotent.

        Args:
            seat: May have been given back before.
            used_tokens: Prompt and output, which the tenant's share pays for instead of what was
                expected; None when nothing was begun.
        """
        if seat.is_released:
            return
        seat.is_released = True
        if seat.share is not None:
            self._account(seat.engine.offer.model, seat.share, used_tokens)
        seat.engine.num_requests -= 1
        seat.engine.num_tokens -= seat.tokens
        if seat.is_alone:
            seat.engine.is_reserved = False
        self.pump(seat.engine.offer.model)

    def _account(self, model: str, share: Share, used_tokens: int | None) -> None:
        if used_tokens is not None:
            self._costs.learn(share.tenant, share.bound, used_tokens)
        queue = self._queues.get(model)
        if queue is not None and share.cost:
            tokens = (used_tokens or 0) - share.cost
            queue.waiters.charge(tenant=share.tenant, priority=share.priority, tokens=tokens)

    def pump(self, model: str) -> None:
        """Seat who waits, as far as credits go; called when something may have become free."""
        queue = self._queues.get(model)
        if queue is None or not (queue.waiters or queue.returning):
            return
        engines = self._engines(model)
        if not engines:
            self._fail_newcomers(queue, model)
            return
        for back, place in queue.returning.placed(engines, queue.turn):
            back.future.set_result(self._seat(place, back.tokens, queue, is_alone=back.is_alone))
        while not queue.returning.holds_up(engines):
            waiter = queue.waiters.first(self._clock())
            if waiter is None:
                return
            if waiter.future.done():
                self._leave(queue, waiter)  # it is being cancelled, and hasn't run yet
                continue
            engine = least_loaded(engines, waiter.tokens, next(queue.turn))
            if engine is None:
                return
            queue.waiters.take(waiter)
            queue.num_waiting -= not waiter.is_extra
            seat = self._seat(engine, waiter.tokens, queue)
            seat.share = Share(waiter.tenant, waiter.priority, waiter.tokens, waiter.cost)
            waiter.future.set_result(seat)

    def num_waiting(self, model: str) -> int:
        """Requests in the queue of a model."""
        queue = self._queues.get(model)
        return 0 if queue is None else queue.num_waiting

    def retry_after_s(self, model: str) -> float:
        """When the queue, at the rate measured last, will have moved on by its length."""
        queue = self._queues.get(model)
        if queue is None or len(queue.departures) < 2:
            return MIN_RETRY_AFTER_S
        span_s = self._clock() - queue.departures[0]
        wait_s = span_s / len(queue.departures) * max(1, queue.num_waiting)
        return float(min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, math.ceil(wait_s))))

    def _enqueue(
        self, queue: _ModelQueue, tenant: str, priority: int, tokens: int, *, is_extra: bool
    ) -> _Waiter:
        future: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        cost = self._costs.of(tenant, tokens)
        waiter = _Waiter(tenant, priority, tokens, cost, future, is_extra)
        queue.waiters.push(waiter, tenant=tenant, priority=priority, cost=cost, now=self._clock())
        queue.num_waiting += not is_extra
        return waiter

    def _seat(
        self, engine: EngineHandle, tokens: int, queue: _ModelQueue, *, is_alone: bool = False
    ) -> Seat:
        engine.num_requests += 1
        engine.num_tokens += tokens
        engine.is_reserved |= is_alone
        queue.departures.append(self._clock())
        return Seat(engine, tokens, is_alone=is_alone)

    @staticmethod
    def _leave(queue: _ModelQueue, waiter: _Waiter) -> None:
        if waiter in queue.waiters:
            queue.waiters.discard(waiter)
            queue.num_waiting -= not waiter.is_extra

    def _fail_newcomers(self, queue: _ModelQueue, model: str) -> None:
        """The last engine went: who has begun nothing yet had better ask elsewhere."""
        for waiter in queue.waiters:
            if not waiter.is_extra:
                self._leave(queue, waiter)
                if not waiter.future.done():
                    waiter.future.set_exception(_no_engine(model))


def _no_engine(model: str) -> WorkerUnavailableError:
    return WorkerUnavailableError(
        f"No engine serves the model `{model}` at the moment; please try again."
    )
