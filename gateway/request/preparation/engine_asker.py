"""Asks one engine after another until one answers: what prompts, embeddings and tokens share."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Suspicion
from gateway.dispatch.slots import EngineHandle, Slot
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError
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
        while True:
            try:
                return slot, await question(slot)
            except (WorkerLostError, RemoteFailureError) as error:
                self._admission.release(slot)
                found = self._suspicion.on_failure(error, slot)
                num_refusals += not isinstance(error, WorkerLostError)
                if not is_retryable(found) or num_refusals > MAX_REFUSALS:
                    raise found from None
            except BaseException:
                self._admission.release(slot, used())
                raise
            # An engine that is full is left alone for a while, so nobody asks it again at once.
            slot = await self._admission.acquire_again(
                self._model,
                tokens=slot.tokens,
                accepts=_any_engine,
                is_alone=self._suspicion.needs_isolation,
                kind=slot.kind,
            )


def _any_engine(_engine: EngineHandle) -> bool:
    return True
