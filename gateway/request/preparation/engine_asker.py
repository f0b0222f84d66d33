"""Asks one engine after another until one answers: what prompts, embeddings and tokens share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Suspicion
from gateway.dispatch.slots import Accepts, EngineHandle, Slot
from gateway.errors import (
    GatewayError,
    RemoteFailureError,
    WeightsReplacedError,
    WorkerLostError,
)
from gateway.workers.engines import BACK_OFF_S, MAX_BACK_OFF_S
from protocol.errors import ErrorCode

AnswerT = TypeVar("AnswerT")

MAX_REFUSALS = 3
"""An engine that answers "full" this often answers so to the client."""
_RETRYABLE = frozenset(
    {
        ErrorCode.WORKER_LOST,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.OVERLOADED,
    }
)


def is_retryable(error: GatewayError) -> bool:
    """Whether another engine, or the same one later, may do better."""
    return error.code in _RETRYABLE


class EngineAsker:
    """Finds slots for the questions of one request, and new ones when engines die or are full.

    What is too long for one engine goes to another that holds longer contexts, if one is there: by
    how much memory each had, those of one model may differ.

    Args:
        admission: Hands out slots.
        suspicion: What speaks against the request: engines that died of it.
        model: Whose engines are asked.
    """

    def __init__(self, admission: Admission, suspicion: Suspicion, model: str) -> None:
        self._admission = admission
        self._suspicion = suspicion
        self._model = model

    async def ask(
        self,
        slot: Slot,
        question: Callable[[Slot], Awaitable[AnswerT]],
        used: Callable[[], int | None] = lambda: None,
    ) -> tuple[Slot, AnswerT]:
        """The answer of this slot's engine, or of another one's, with the slot that gave it.

        Args:
            slot: Owned by this call until it returns; given back when it raises.
            question: Asks the engine of a slot, perhaps several times.
            used: Tokens that its tenant's share pays for when it is given up.

        Raises:
            GatewayError: The question is wrong, engines die of it, or they are full.
        """
        num_refusals = 0
        full: set[EngineHandle] = set()
        while True:
            try:
                return slot, await question(slot)
            except (WorkerLostError, RemoteFailureError) as error:
                self._admission.release(slot)
                found = self._suspicion.on_failure(error, slot)
                num_refusals += not isinstance(error, WorkerLostError)
                if num_refusals > MAX_REFUSALS:
                    raise found from None
            except BaseException:
                self._admission.release(slot, used())
                raise
            accepts = await self._who_is_next(slot.engine, found, full)
            try:
                slot = await self._admission.acquire_again(
                    self._model,
                    tokens=slot.tokens,
                    accepts=accepts,
                    is_alone=self._suspicion.needs_isolation,
                    may_come=lambda: is_retryable(found),  # noqa: B023 - asked meanwhile only
                    kind=slot.kind,
                    share=slot.share,
                )
            except WeightsReplacedError:  # the one that holds more has left
                raise found from None

    async def _who_is_next(
        self, engine: EngineHandle, found: GatewayError, full: set[EngineHandle]
    ) -> Accepts:
        """Which engines may be asked after one that has failed or refused, once it is time to.

        An engine that is full may be so for one tenant only, so nobody else leaves it alone.

        Args:
            engine: Which one that is.
            found: How.
            full: Those that were, since somebody waited for them.

        Raises:
            GatewayError: `found`, where no other engine would do better.
        """
        if found.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED:
            length = engine.offer.max_model_len
            if self._admission.has_engine(self._model, lambda one: _holds(one) > length):
                return lambda one: _holds(one) > length
        if not is_retryable(found):
            raise found from None
        if found.code is ErrorCode.OVERLOADED:
            full.add(engine)
            if not self._has_others(full):
                await asyncio.sleep(min(found.retry_after_s or BACK_OFF_S, MAX_BACK_OFF_S))
                full.clear()
        return lambda one: one not in full or not self._has_others(full)

    def _has_others(self, full: set[EngineHandle]) -> bool:
        return self._admission.has_engine(self._model, lambda one: one not in full)


def _holds(engine: EngineHandle) -> int:
    """The longest context."""
    return engine.offer.max_model_len
