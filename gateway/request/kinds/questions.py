"""Work that is one question to an engine: embeddings, scores, classes, tokens, their text."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from gateway import bridge
from gateway.bridge import Outcome
from gateway.dispatch.quarantine import Suspicion
from gateway.dispatch.slots import Slot, SlotKind
from gateway.errors import GatewayError, RemoteFailureError
from gateway.request.choices.launcher import EnginePool
from gateway.request.jobs.job import question_fingerprint
from gateway.request.jobs.model_limits import find_offer
from gateway.request.leases.work_bound import Admitted, Bound
from gateway.request.lifecycle.work import SimpleWork
from gateway.request.preparation.engine_asker import EngineAsker
from gateway.telemetry.metrics import Metrics
from protocol.version import ProtocolVersion
from protocol.wire.messages import (
    Classified,
    Classify,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EngineOffer,
    Prepare,
    Prepared,
    Score,
    Scored,
    Usage,
)

QuestionT = TypeVar("QuestionT", Prepare, Detokenize, Embed, Score, Classify)
AnswerT = TypeVar("AnswerT", Prepared, Detokenized, Embedded, Scored, Classified)


@dataclass(frozen=True)
class Question(Generic[QuestionT, AnswerT]):
    """What an engine is asked, and how it is counted.

    Attributes:
        endpoint: The route template.
        model: Public name.
        message: Not addressed yet.
        answer_kind: The message that answers it.
        prompt_tokens: Upper bound of what is charged; 0 charges nothing.
        least_tokens: What is charged when the client leaves while an engine works on it.
        check: Refuses what the engines of an offer, speaking at least a version, can't do.
        tokens_of: What an answer is charged.
        cached_of: Of these, what was cached before.
        check_answer: Whether an answer is one to this question.
        slot: Whether it runs in an engine's steps, or in the threads beside them.
        end_user: For whom it is, as the body says; empty when it doesn't.
        is_counted_late: Whether an engine that is told to stop says what it has computed.
    """

    endpoint: str
    model: str
    message: QuestionT
    answer_kind: type[AnswerT]
    check: Callable[[EngineOffer, ProtocolVersion], None]
    prompt_tokens: Callable[[EngineOffer | None], int] = lambda _offer: 0
    least_tokens: Callable[[EngineOffer], int] = lambda _offer: 0
    tokens_of: Callable[[AnswerT], int] = lambda _answer: 0
    cached_of: Callable[[AnswerT], int] = lambda _answer: 0
    check_answer: Callable[[AnswerT], bool] = lambda _answer: True
    slot: SlotKind = "question"
    end_user: str = ""
    is_counted_late: bool = False


class QuestionWork(SimpleWork, Generic[QuestionT, AnswerT]):
    """One question: after `Request.start` its answer is there.

    Args:
        question: What is asked.
        asked_model: What the client calls its model.
        pool: The engines.
        metrics: Where it is counted.
        configured_models: Names that are served sooner or later.

    Attributes:
        offer: What the model's engines serve.
    """

    def __init__(
        self,
        question: Question[QuestionT, AnswerT],
        *,
        asked_model: str,
        pool: EnginePool,
        metrics: Metrics,
        configured_models: tuple[str, ...],
    ) -> None:
        self.endpoint = question.endpoint
        self.model = question.model
        self.asked_model = asked_model
        self.offer: EngineOffer | None = None
        self._question: Question[QuestionT, AnswerT] = question
        self._pool = pool
        self._metrics = metrics
        self._configured_models = configured_models
        self._admitted = Admitted()
        self._slot: Slot | None = None
        self._was_sent = False
        self._answer: AnswerT | None = None
        self._late: asyncio.Future[AnswerT] | None = None
        self._computed: Usage | None = None
        self._is_at_worker = False

    @property
    def answer(self) -> AnswerT:
        """What the engine said; only after the start."""
        assert self._answer is not None, "the start raises unless there is an answer"
        return self._answer

    def bound(self) -> Bound:
        """What it may be charged; it counts as a request in any case."""
        offer = self._pool.directory.offer(self.model)
        question = self._question
        return Bound(prompt_tokens=question.prompt_tokens(offer), end_user=question.end_user)

    def check(self) -> None:
        """Refuse what the model's engines can't do.

        Raises:
            GatewayError: No such model, or it doesn't do this.
        """
        directory = self._pool.directory
        self.offer = find_offer(directory, self.model, self._configured_models)
        self.is_served = True
        self._question.check(self.offer, directory.version(self.model))

    async def prepare(self, admitted: Admitted) -> None:
        """Find a slot, in turn with everybody else's work.

        Raises:
            GatewayError: The queue is full, engines died of it a while ago, or none is there.
        """
        self._admitted = admitted
        if not self._pool.quarantine.is_empty:
            self._pool.quarantine.check(self._fingerprint())
        self._slot = await self._pool.admission.acquire(
            self.model,
            tenant=admitted.tenant,
            priority=admitted.priority,
            tokens=self._question.prompt_tokens(self.offer),
            kind=self._question.slot,
        )

    async def run(self) -> None:
        """Ask, at another engine if the first one dies.

        Raises:
            GatewayError: The question is wrong, engines die of it, or they are full.
        """
        slot, self._slot = self._slot, None
        assert slot is not None, "prepare() found one"
        asker = EngineAsker(
            self._pool.admission, Suspicion(self._pool.quarantine, self._fingerprint), self.model
        )
        self._slot, self._answer = await asker.ask(
            slot, self._ask, lambda: self.usage().prompt_tokens if self._was_sent else None
        )
        self.owner.end("finished")

    def abort(self, error: GatewayError | None) -> None:
        """Give the slot back; a question that is on its way is cancelled with the start."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._pool.admission.release(slot, self.usage().prompt_tokens)

    @property
    def is_at_worker(self) -> bool:
        """Whether an engine works on it, or is about to say what it has computed."""
        return self._is_at_worker

    def give_up(self) -> None:
        """The engine says nothing."""
        self._is_at_worker = False
        if self._late is not None:
            self._late.cancel()

    @property
    def has_begun(self) -> bool:
        """Whether an engine was asked, and didn't refuse."""
        return self._was_sent

    def usage(self) -> Usage:
        """What the answer is charged; of an abandoned question what was computed, as far as known.

        And never less than must be computed.
        """
        if self._answer is not None:
            return Usage(
                prompt_tokens=self._question.tokens_of(self._answer),
                cached_tokens=self._question.cached_of(self._answer),
            )
        if self._was_sent and self.offer is not None:
            least = self._question.least_tokens(self.offer)
            if self._computed is None:
                return Usage(prompt_tokens=least)
            prompt_tokens = max(least, self._computed.prompt_tokens)
            return Usage(prompt_tokens=prompt_tokens, cached_tokens=self._computed.cached_tokens)
        return Usage()

    def observe(self, outcome: Outcome, duration_s: float) -> None:
        """Count its tokens."""
        num_tokens = self.usage().prompt_tokens
        if num_tokens and self.offer is not None:
            self._metrics.tokens.add(num_tokens, self.model, "prompt")

    async def _ask(self, slot: Slot) -> AnswerT:
        request_id = self.owner.request_id
        message = bridge.addressed(
            self._question.message,
            request_id,
            deadline_s=self.owner.remaining_s(),
            tenant=self._admitted.tenant,
            priority=self._admitted.priority,
            trace_id=self.owner.trace_id,
        )
        link = self._pool.link
        answer: asyncio.Future[AnswerT] = link.ask(slot.engine, message, self._question.answer_kind)
        self._was_sent = True
        self._is_at_worker = self._question.is_counted_late
        try:
            found = await answer
        except RemoteFailureError as error:
            # Whoever refuses has computed nothing; whose time ran out at work says what it has.
            self._was_sent = error.usage is not None
            self._computed = error.usage
            raise
        except asyncio.CancelledError:
            if self._question.is_counted_late:
                self._late = link.cancel(slot.engine, request_id, self._question.answer_kind)
            raise
        finally:
            if self._late is None:
                self._is_at_worker = False
                link.close(slot.engine, request_id)
                self.owner.on_idle()
            else:
                self._late.add_done_callback(partial(self._on_late, slot))
        if not self._question.check_answer(found):
            raise GatewayError("An engine gave an answer to another question.")
        return found

    def _on_late(self, slot: Slot, told: "asyncio.Future[AnswerT]") -> None:
        """An engine says what it had computed, or is gone; the request is settled now."""
        self._pool.link.close(slot.engine, self.owner.request_id)
        error = None if told.cancelled() else told.exception()
        if isinstance(error, RemoteFailureError):
            self._computed = error.usage
        elif error is None and not told.cancelled():
            counted = told.result()
            self._computed = Usage(
                prompt_tokens=self._question.tokens_of(counted),
                cached_tokens=self._question.cached_of(counted),
            )
        self._is_at_worker = False
        self.owner.on_idle()

    def _fingerprint(self) -> bytes:
        return question_fingerprint(self._question.message, self.model, self._admitted.tenant)
