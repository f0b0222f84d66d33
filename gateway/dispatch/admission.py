"""Gives out slots at engines: at once, in turn, again after a loss, and takes them back."""

import asyncio
import time
from collections.abc import Callable, Sequence

from gateway.dispatch.fair_queue import CostEstimate
from gateway.dispatch.returning import ReturningWaiter, ReturningWork
from gateway.dispatch.slots import (
    Accepts,
    EngineHandle,
    Share,
    Slot,
    SlotKind,
    any_engine,
    least_loaded,
)
from gateway.dispatch.waiting_line import MIN_RETRY_AFTER_S, Waiter, WaitingLine
from gateway.errors import WorkerUnavailableError


class _Model:
    """Who waits for engines of one model.

    Attributes:
        lines: Who waits for a first slot, by its kind.
        returning: Who was at an engine that is gone; before everybody else who waits for work.
    """

    def __init__(self, max_queue: int, clock: Callable[[], float], overload_message: str) -> None:
        self.lines: dict[SlotKind, WaitingLine] = {
            "work": WaitingLine(max_queue, clock, overload_message),
            "question": WaitingLine(max_queue, clock, overload_message),
        }
        self.returning: dict[SlotKind, ReturningWork] = {
            "work": ReturningWork(),
            "question": ReturningWork(),
        }

    def has_waiters(self, kind: SlotKind) -> bool:
        """Whether somebody waits for a slot of this kind, and so goes before a newcomer."""
        return self.lines[kind].num_in_line > 0 or bool(self.returning[kind].waiters)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a slot of any kind; asked several times a request."""
        lines, returning = self.lines, self.returning
        return bool(
            lines["work"].num_in_line
            or lines["question"].num_in_line
            or returning["work"].waiters
            or returning["question"].waiters
        )


class Admission:
    """Hands out slots at engines.

    Waiting requests are ordered by priority with aging, then fair between tenants by tokens: a
    tenant with a thousand requests delays another's first one by one request, not by a thousand.
    Who finds no credit at the engines that can do its work keeps them free of those behind it,
    and holds up nobody whose work other engines can do.

    Args:
        engines: The live engines of a model.
        max_queue: Requests that may wait for one model and kind of slot.
        clock: Monotonic seconds.
        overload_message: What is said where no place is left; empty says how many wait.
    """

    def __init__(
        self,
        engines: Callable[[str], Sequence[EngineHandle]],
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
        overload_message: str = "",
    ) -> None:
        self._overload_message = overload_message
        self._engines = engines
        self._max_queue = max_queue
        self._clock = clock
        self._models: dict[str, _Model] = {}
        self._costs = CostEstimate()

    async def acquire(
        self,
        model: str,
        *,
        tenant: str,
        priority: int,
        tokens: int,
        is_extra: bool = False,
        accepts: Accepts = any_engine,
        kind: SlotKind = "work",
    ) -> Slot:
        """A slot at the least loaded engine that has credit; waits for its turn.

        Args:
            model: A known model.
            tenant: Whose turn it is.
            priority: Lower goes first.
            tokens: Upper bound of prompt and output.
            is_extra: A further choice of a request that is in already: its client has been let
                in, so the bounds of the queue don't apply, and it waits while no engine is there.
            accepts: Which engines can do the work.
            kind: Of the slot.

        Raises:
            OverloadedError: The queue is full, or this tenant has too much of it.
            WorkerUnavailableError: No engine of this model is there, or the last one went.
        """
        if not is_extra and not self._engines(model):
            raise _no_engine(model)
        slot = self.take_now(
            model,
            tenant=tenant,
            priority=priority,
            tokens=tokens,
            is_extra=is_extra,
            accepts=accepts,
            kind=kind,
        )
        if slot is not None:
            return slot
        queue = self._model(model)
        line = queue.lines[kind]
        is_behind = queue.has_waiters(kind)
        if not is_extra:
            line.check_room(model, tenant)
        waiter = Waiter(
            tenant=tenant,
            priority=priority,
            tokens=tokens,
            cost=self._costs.of(tenant, tokens),
            accepts=accepts,
            future=asyncio.get_running_loop().create_future(),
            is_extra=is_extra,
        )
        line.add(waiter)
        if is_behind:
            self.pump(model)  # those before it may want other engines
        return await self._wait(model, waiter.future, lambda: line.discard(waiter))

    def take_now(
        self,
        model: str,
        *,
        tenant: str,
        priority: int,
        tokens: int,
        is_extra: bool = False,
        accepts: Accepts = any_engine,
        kind: SlotKind = "work",
    ) -> Slot | None:
        """A slot as `acquire` gives one, if nobody waits before and an engine has credit.

        The arguments are those of `acquire`.
        """
        queue = self._model(model)
        if queue.has_waiters(kind):
            return None
        line = queue.lines[kind]
        fitting = [engine for engine in self._engines(model) if accepts(engine)]
        engine = least_loaded(fitting, tokens, next(line.turn), kind)
        if engine is None:
            return None
        line.note_departure(tenant, is_extra=is_extra)
        return _slot(engine, tokens, kind, Share(tenant, priority, tokens, cost=0))

    async def acquire_again(
        self,
        model: str,
        *,
        tokens: int,
        accepts: Accepts,
        is_alone: bool = False,
        may_come: Callable[[], bool] = lambda: True,
        kind: SlotKind = "work",
        share: Share | None = None,
    ) -> Slot:
        """A slot for work that lost its engine: before everybody who waits for a first one.

        Without a fitting engine it waits for one to come, as long as one may, or none at all is
        there; its caller bounds the time.

        Args:
            model: A known model.
            tokens: Upper bound of prompt and output.
            accepts: Which engines can go on with it.
            is_alone: Take an engine with nothing else on it, and keep it so until `share`.
            may_come: Whether a fitting engine may still come; asked while only others are there,
                whenever something changes.
            kind: Of the slot.
            share: Of the slot that was lost, which pays for the next one as well.

        Raises:
            WorkerLostError: Only engines that can't go on with it are there, and none may come.
        """
        returning = self._model(model).returning[kind]
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiter = ReturningWaiter(tokens, accepts, is_alone, may_come, future, kind, share)
        returning.add(waiter)
        self.pump(model)
        return await self._wait(model, future, lambda: returning.discard(waiter))

    async def _wait(
        self, model: str, future: "asyncio.Future[Slot]", leave: Callable[[], None]
    ) -> Slot:
        """The slot; who is cancelled meanwhile leaves nothing behind."""
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                if future.exception() is None:
                    self.release(future.result())
            else:
                future.cancel()
                leave()
                self.pump(model)  # the next one may fit where this one did not
            raise

    def share(self, slot: Slot) -> None:
        """Let others work beside a slot that was alone; idempotent."""
        if slot.is_alone:
            slot.is_alone = False
            slot.engine.is_reserved = False
            self.pump(slot.engine.offer.model)

    def resize(self, slot: Slot, tokens: int) -> None:
        """Replace the upper bound of a slot by a better number; what becomes free is given out."""
        if slot.is_released:
            return
        has_shrunk = tokens < slot.tokens
        slot.resize(tokens)
        if has_shrunk:
            self.pump(slot.engine.offer.model)

    def move(self, slot: Slot, engine: EngineHandle) -> None:
        """Exchange a slot for one at another engine that can take its tokens.

        One that is alone stays: the other engine may have work.
        """
        if slot.is_released or slot.is_alone or engine is slot.engine:
            return
        slot.vacate()
        slot.engine = engine
        slot.occupy()
        self.pump(engine.offer.model)

    def release(self, slot: Slot, used_tokens: int | None = None) -> None:
        """Give a slot back; idempotent.

        Args:
            slot: May have been given back before.
            used_tokens: Prompt and output, which the tenant's share pays for instead of what was
                expected; None when nothing was begun.
        """
        if slot.is_released:
            return
        slot.is_released = True
        model = slot.engine.offer.model
        if slot.share is not None:
            self._account(self._model(model).lines[slot.kind], slot.share, used_tokens)
        slot.vacate()
        if slot.is_alone:
            slot.engine.is_reserved = False
        self.pump(model)

    def _account(self, line: WaitingLine, share: Share, used_tokens: int | None) -> None:
        if used_tokens is not None:
            self._costs.learn(share.tenant, share.bound, used_tokens)
        if share.cost:
            line.charge(share, (used_tokens or 0) - share.cost)

    def pump(self, model: str) -> None:
        """Admit who waits, as far as credits go; called when something may have become free."""
        queue = self._models.get(model)
        if queue is None or not queue.is_awaited:
            return
        engines = self._engines(model)
        if not engines:
            _fail_newcomers(queue, model)
            return
        for kind, line in queue.lines.items():
            free = queue.returning[kind].place(engines, line)
            _admit_in_order(line, free, kind)

    def has_engine(self, model: str, accepts: Accepts) -> bool:
        """Whether an engine of a model takes new work, now or later, and can do some of a kind."""
        return any(accepts(one) for one in self._engines(model) if one.peer.takes_work)

    def num_waiting(self, model: str) -> int:
        """Requests in the queues of a model."""
        queue = self._models.get(model)
        return 0 if queue is None else sum(line.num_waiting for line in queue.lines.values())

    def retry_after_s(self, model: str) -> float:
        """When the queue, at the rate measured last, will have moved on by its length."""
        queue = self._models.get(model)
        return MIN_RETRY_AFTER_S if queue is None else queue.lines["work"].retry_after_s()

    def _model(self, model: str) -> _Model:
        queue = self._models.get(model)
        if queue is None:
            queue = self._models[model] = _Model(
                self._max_queue, self._clock, self._overload_message
            )
        return queue


def _slot(engine: EngineHandle, tokens: int, kind: SlotKind, share: Share | None = None) -> Slot:
    slot = Slot(engine, tokens, share=share, kind=kind)
    slot.occupy()
    return slot


def _admit_in_order(line: WaitingLine, free: list[EngineHandle], kind: SlotKind) -> None:
    """Admit those of a line who find credit.

    Args:
        line: Who waits.
        free: Engines that nobody more important waits for; used up.
        kind: Of the line.
    """
    while free and _admit_next(line, free, kind):
        pass


def _admit_next(line: WaitingLine, free: list[EngineHandle], kind: SlotKind) -> bool:
    for waiter in line.in_order():
        if waiter.future.done():
            line.discard(waiter)  # it is being cancelled, and hasn't run yet
            return True
        fitting = [engine for engine in free if waiter.accepts(engine)]
        engine = least_loaded(fitting, waiter.tokens, next(line.turn), kind)
        if engine is not None:
            share = line.take(waiter)
            waiter.future.set_result(_slot(engine, waiter.tokens, kind, share))
            return True
        for engine in fitting:
            free.remove(engine)
        if not free:
            break
    return False


def _fail_newcomers(queue: _Model, model: str) -> None:
    """The last engine went: who has begun nothing yet had better ask elsewhere."""
    for line in queue.lines.values():
        for waiter in line:
            if not waiter.is_extra:
                line.discard(waiter)
                if not waiter.future.done():
                    waiter.future.set_exception(_no_engine(model))


def _no_engine(model: str) -> WorkerUnavailableError:
    return WorkerUnavailableError(
        f"No engine serves the model `{model}` at the moment; please try again."
    )
