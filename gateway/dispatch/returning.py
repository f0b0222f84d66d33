"""Work that lost its engine and needs another one: served before all that wait for a first."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.dispatch.slots import Accepts, EngineHandle, Share, Slot, SlotKind, least_loaded
from gateway.dispatch.waiting_line import WaitingLine
from gateway.errors import WeightsReplacedError


@dataclass(slots=True, eq=False)
class ReturningWaiter:
    """One piece of such work.

    Attributes:
        tokens: Upper bound of prompt and output.
        accepts: Which engines can go on with it.
        is_alone: It wants an engine with nothing else on it.
        may_come: Whether a fitting engine may still come, asked while only others are there.
        future: Gets the slot.
        kind: Of the slot.
        share: Pays for the slot, as it did for the one that was lost.
        reserved: The engine that is being emptied for it.
    """

    tokens: int
    accepts: Accepts
    is_alone: bool
    may_come: Callable[[], bool]
    future: "asyncio.Future[Slot]"
    kind: SlotKind = "work"
    share: Share | None = None
    reserved: EngineHandle | None = None


class ReturningWork:
    """The waiters of one model and kind of slot.

    Attributes:
        waiters: All of them, in order.
    """

    def __init__(self) -> None:
        self.waiters: dict[ReturningWaiter, None] = {}

    def add(self, waiter: ReturningWaiter) -> None:
        """One more, behind the others."""
        self.waiters[waiter] = None

    def discard(self, waiter: ReturningWaiter) -> None:
        """It gave up; idempotent."""
        self.waiters.pop(waiter, None)
        _unreserve(waiter)

    def place(self, engines: Sequence[EngineHandle], line: WaitingLine) -> list[EngineHandle]:
        """Admit those for whom there is an engine now.

        Who only lacks credit keeps the engines that can go on with its work free of everybody
        behind it. Who finds only engines that can't, and has none to wait for, gets its error.

        Args:
            engines: The live engines of the model, at least one.
            line: Who waits for a first slot of the model and kind; it charges shares.

        Returns:
            The engines that nobody here waits for.
        """
        free = list(engines)
        for waiter in list(self.waiters):
            if waiter.future.done():
                self.discard(waiter)
                continue
            fitting = [engine for engine in engines if waiter.accepts(engine)]
            if not fitting and not waiter.may_come():
                self.discard(waiter)
                waiter.future.set_exception(WeightsReplacedError())
            elif waiter.is_alone:
                self._admit(waiter, _emptied(waiter, fitting), line)
            elif free:
                fitting = [engine for engine in free if engine in fitting]
                found = least_loaded(fitting, waiter.tokens, next(line.turn), waiter.kind)
                if not self._admit(waiter, found, line):
                    free = [engine for engine in free if engine not in fitting]
        return free

    def _admit(
        self, waiter: ReturningWaiter, engine: EngineHandle | None, line: WaitingLine
    ) -> bool:
        if engine is None:
            return False
        del self.waiters[waiter]
        share = waiter.share
        slot = Slot(engine, waiter.tokens, is_alone=waiter.is_alone, share=share, kind=waiter.kind)
        slot.occupy()
        if share is not None and share.cost:
            line.charge(share, share.cost)  # what was given back when the other slot was lost
        waiter.future.set_result(slot)
        return True


def _emptied(waiter: ReturningWaiter, fitting: Sequence[EngineHandle]) -> EngineHandle | None:
    """An engine with nothing on it; while there is none, one gets nothing new until it is empty."""
    engine = waiter.reserved
    if engine is None or engine not in fitting or not engine.takes_work:
        _unreserve(waiter)
        free = [one for one in fitting if one.takes_work and not one.is_reserved]
        if not free:
            return None
        engine = min(free, key=lambda one: one.num_unfinished)
        waiter.reserved = engine
        engine.is_reserved = True
    return engine if engine.num_requests == 0 else None


def _unreserve(waiter: ReturningWaiter) -> None:
    engine, waiter.reserved = waiter.reserved, None
    if engine is not None:
        engine.is_reserved = False
