"""Work that lost its engine and needs another one: seated before everybody who waits for a first."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.dispatch.seats import Accepts, EngineHandle, Seat, least_loaded
from gateway.errors import WorkerLostError


@dataclass(slots=True, eq=False)
class ReturningWaiter:
    """One piece of such work.

    Attributes:
        tokens: Upper bound of prompt and output.
        accepts: Which engines can go on with it.
        is_alone: It wants an engine with nothing else on it.
        is_patient: It waits for a fitting engine even while only others are there.
        future: Gets the seat.
        reserved: The engine that is being emptied for it.
    """

    tokens: int
    accepts: Accepts
    is_alone: bool
    is_patient: bool
    future: "asyncio.Future[Seat]"
    reserved: EngineHandle | None = None


class ReturningWork:
    """The waiters of one model, in order."""

    def __init__(self) -> None:
        self._waiters: list[ReturningWaiter] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, waiter: ReturningWaiter) -> None:
        """One more, behind the others."""
        self._waiters.append(waiter)

    def discard(self, waiter: ReturningWaiter) -> None:
        """It gave up; idempotent."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        _unreserve(waiter)

    def holds_up(self, engines: Sequence[EngineHandle]) -> bool:
        """Whether others must wait behind somebody here who only lacks credit."""
        return any(
            not waiter.is_alone
            and not waiter.future.done()
            and any(engine.takes_work and waiter.accepts(engine) for engine in engines)
            for waiter in self._waiters
        )

    def placed(
        self, engines: Sequence[EngineHandle], turn: Iterator[int]
    ) -> Iterator[tuple[ReturningWaiter, EngineHandle]]:
        """Those for whom there is an engine now, taken out, one by one; the caller seats each.

        Who is not patient and finds only engines that can't go on with its work gets its error.

        Args:
            engines: The live engines of the model, at least one.
            turn: Breaks ties.
        """
        for waiter in list(self._waiters):
            if waiter.future.done():
                self._waiters.remove(waiter)
                continue
            fitting = [engine for engine in engines if waiter.accepts(engine)]
            if not fitting:
                if not waiter.is_patient:
                    self._waiters.remove(waiter)
                    waiter.future.set_exception(_replaced())
                continue
            if waiter.is_alone:
                engine = _emptied(waiter, fitting)
            else:
                engine = least_loaded(fitting, waiter.tokens, next(turn))
            if engine is not None:
                self._waiters.remove(waiter)
                yield waiter, engine


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


def _replaced() -> WorkerLostError:
    return WorkerLostError(
        "The engines that began this answer were replaced by another version that can't go on "
        "with it; please try again."
    )
