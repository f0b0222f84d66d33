"""The bounded queue before the engines: fair between tenants, by priority, within credits."""

import asyncio
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.errors import OverloadedError, WorkerUnavailableError
from protocol.messages import EngineOffer
from protocol.peers import Peer

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 120.0
_RATE_WINDOW = 128
_MAX_GIVEN_UP = 64


@dataclass(slots=True, eq=False)
class EngineHandle:
    """One live engine as routing sees it.

    Attributes:
        peer: Its connection, with its latest load and credit.
        offer: What it serves.
        num_requests: Choices that this gateway has there; `num_tokens` their tokens.
        is_backing_off: It just refused work that seemed to be within its credit.
    """

    peer: Peer
    offer: EngineOffer
    num_requests: int = 0
    num_tokens: int = 0
    is_backing_off: bool = False

    def can_take(self, tokens: int) -> bool:
        """Whether one more choice of so many tokens is within the credit."""
        credits_now = self.peer.credits or self.offer.credits
        if not self.peer.takes_work or self.is_backing_off:
            return False
        if self.num_requests >= credits_now.max_requests:
            return False
        # One request alone may always go: the engine itself knows best whether it can ever fit.
        return self.num_requests == 0 or self.num_tokens + tokens <= credits_now.max_tokens

    @property
    def num_unfinished(self) -> int:
        """Choices there: as reported, which is up to a second old, or as sent, if that is more."""
        load = self.peer.load
        return max(load.num_running + load.num_waiting, self.num_requests)


@dataclass(slots=True, eq=False)
class Seat:
    """The right to one choice at one engine, until released."""

    engine: EngineHandle
    tokens: int
    is_released: bool = False


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
        num_live: Waiters that have not given up; `num_waiting` those to which the bound applies.
    """

    waiters: list[_Waiter] = field(default_factory=list)
    num_live: int = 0
    num_waiting: int = 0
    virtual_time: float = 0.0
    last_finish: dict[tuple[int, str], float] = field(default_factory=dict)
    departures: deque[float] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW))
    turn: int = 0


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
            is_extra: A further choice of a request that is in already; the bound of the queue
                doesn't apply, because its client has been let in.

        Raises:
            OverloadedError: The queue is full.
            WorkerUnavailableError: No engine of this model is there, or the last one went.
        """
        queue = self._queues.setdefault(model, _ModelQueue())
        engines = self._engines(model)
        if not engines:
            raise _no_engine(model)
        if queue.num_live == 0:
            engine = _least_loaded(engines, tokens, queue)
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

    def resize(self, seat: Seat, tokens: int) -> None:
        """Replace the upper bound of a seat by a better number."""
        if not seat.is_released:
            seat.engine.num_tokens += tokens - seat.tokens
            seat.tokens = tokens

    def release(self, seat: Seat) -> None:
        """Give a seat back; idempotent."""
        if seat.is_released:
            return
        seat.is_released = True
        seat.engine.num_requests -= 1
        seat.engine.num_tokens -= seat.tokens
        self.pump(seat.engine.offer.model)

    def pump(self, model: str) -> None:
        """Seat who waits, as far as credits go; called when something may have become free."""
        queue = self._queues.get(model)
        if queue is None or not queue.waiters:
            return
        engines = self._engines(model)
        if not engines:
            self._fail_all(queue, model)
            return
        while queue.waiters:
            waiter = queue.waiters[0]
            if waiter.future.done():
                heapq.heappop(queue.waiters)
                continue
            engine = _least_loaded(engines, waiter.tokens, queue)
            if engine is None:
                return
            heapq.heappop(queue.waiters)
            self._forget(queue, waiter)
            queue.virtual_time = max(queue.virtual_time, waiter.virtual_start)
            waiter.future.set_result(self._seat(engine, waiter.tokens, queue))
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

    def _seat(self, engine: EngineHandle, tokens: int, queue: _ModelQueue) -> Seat:
        engine.num_requests += 1
        engine.num_tokens += tokens
        queue.departures.append(self._clock())
        return Seat(engine, tokens)

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

    def _fail_all(self, queue: _ModelQueue, model: str) -> None:
        waiters, queue.waiters = queue.waiters, []
        for waiter in waiters:
            if not waiter.future.done():
                self._forget(queue, waiter)
                waiter.future.set_exception(_no_engine(model))


def _least_loaded(
    engines: Sequence[EngineHandle], tokens: int, queue: _ModelQueue
) -> EngineHandle | None:
    """The engine with the least work among those with credit; ties go round."""
    queue.turn += 1
    best: EngineHandle | None = None
    best_score = (0, 0)
    for offset in range(len(engines)):
        engine = engines[(queue.turn + offset) % len(engines)]
        if not engine.can_take(tokens):
            continue
        score = (engine.num_unfinished, engine.num_tokens)
        if best is None or score < best_score:
            best, best_score = engine, score
    return best


def _no_engine(model: str) -> WorkerUnavailableError:
    return WorkerUnavailableError(
        f"No engine serves the model `{model}` at the moment; please try again."
    )
