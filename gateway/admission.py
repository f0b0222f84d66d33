"""The bounded queue before the engines: fair between tenants, by priority, within credits."""

import asyncio
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gateway.errors import OverloadedError, WorkerUnavailableError
from gateway.returning import ReturningWaiter, ReturningWork
from gateway.seats import Accepts, EngineHandle, Seat, least_loaded

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 120.0
_RATE_WINDOW = 128
_MAX_GIVEN_UP = 64


@dataclass(slots=True, order=True)
class _Waiter:
    """A request in the queue; the fields up to `number` are its place in it."""

    priority: int
    virtual_start: float
    number: int
    tokens: int = field(compare=False)
    future: "asyncio.Future[Seat]" = field(compare=False)
    is_extra: bool = field(compare=False)


@dataclass(slots=True)
class _ModelQueue:
    """The waiters of one model, and the virtual time that keeps them fair.

    Attributes:
        waiters: A heap; who gave up stays in it until it comes to the top, or until they are many.
        returning: Who was at an engine that is gone, in order; they go before everybody else.
        num_live: Waiters that have not given up; `num_waiting` those to which the bound applies.
    """

    waiters: list[_Waiter] = field(default_factory=list)
    returning: ReturningWork = field(default_factory=ReturningWork)
    num_live: int = 0
    num_waiting: int = 0
    virtual_time: float = 0.0
    last_finish: dict[tuple[int, str], float] = field(default_factory=dict)
    departures: deque[float] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW))
    turn: Iterator[int] = field(default_factory=itertools.count)


class Admission:
    """Hands out seats at engines.

    Waiting requests are ordered by priority, then by start-time fair queueing between tenants
    (Goyal, Vin, Cheng 1996), with tokens as the cost: a tenant with a thousand requests delays
    another's first one by one request, not by a thousand.

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
        self._numbers = itertools.count()
        self._queues: dict[str, _ModelQueue] = {}

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
        if queue.num_live == 0 and not queue.returning.holds_up(engines):
            engine = least_loaded(engines, tokens, next(queue.turn))
            if engine is not None:
                return self._seat(engine, tokens, queue)
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
                self._forget(queue, waiter)
                self._sweep(queue)
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

    def release(self, seat: Seat) -> None:
        """Give a seat back; idempotent."""
        if seat.is_released:
            return
        seat.is_released = True
        seat.engine.num_requests -= 1
        seat.engine.num_tokens -= seat.tokens
        if seat.is_alone:
            seat.engine.is_reserved = False
        self.pump(seat.engine.offer.model)

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
        while queue.waiters and not queue.returning.holds_up(engines):
            waiter = queue.waiters[0]
            if waiter.future.done():
                heapq.heappop(queue.waiters)
                continue
            engine = least_loaded(engines, waiter.tokens, next(queue.turn))
            if engine is None:
                return
            heapq.heappop(queue.waiters)
            self._forget(queue, waiter)
            queue.virtual_time = max(queue.virtual_time, waiter.virtual_start)
            waiter.future.set_result(self._seat(engine, waiter.tokens, queue))
        if not queue.waiters:
            queue.last_finish.clear()  # nobody waits: no debts are carried over

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
        start = max(queue.virtual_time, queue.last_finish.get((priority, tenant), 0.0))
        queue.last_finish[(priority, tenant)] = start + tokens
        future: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(priority, start, next(self._numbers), tokens, future, is_extra)
        heapq.heappush(queue.waiters, waiter)
        queue.num_live += 1
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
    def _forget(queue: _ModelQueue, waiter: _Waiter) -> None:
        queue.num_live -= 1
        queue.num_waiting -= not waiter.is_extra

    @staticmethod
    def _sweep(queue: _ModelQueue) -> None:
        """Drop who gave up once they are the most, so that the heap stays as long as the queue."""
        if len(queue.waiters) > _MAX_GIVEN_UP + 2 * queue.num_live:
            queue.waiters = [one for one in queue.waiters if not one.future.done()]
            heapq.heapify(queue.waiters)

    def _fail_newcomers(self, queue: _ModelQueue, model: str) -> None:
        """The last engine went: who has begun nothing yet had better ask elsewhere."""
        waiters = [waiter for waiter in queue.waiters if not waiter.future.done()]
        queue.waiters = [waiter for waiter in waiters if waiter.is_extra]
        heapq.heapify(queue.waiters)
        for waiter in waiters:
            if not waiter.is_extra:
                self._forget(queue, waiter)
                waiter.future.set_exception(_no_engine(model))


def _no_engine(model: str) -> WorkerUnavailableError:
    return WorkerUnavailableError(
        f"No engine serves the model `{model}` at the moment; please try again."
    )
