"""When a response's beginning is summed up, and what the summary is."""

from collections.abc import AsyncIterator
from typing import Final

from gateway import bridge
from gateway.errors import GatewayError
from gateway.http.openresponses.convert import MAX_SUMMARY_TOKENS
from gateway.http.openresponses.hosted import HostedPlan
from gateway.http.openresponses.hosted_items import Earlier
from gateway.http.openresponses.schemas import BY_CONTEXT
from gateway.request.callers.caller import Caller
from gateway.request.delivery.events import ContentText
from gateway.request.factory import RequestFactory
from gateway.request.jobs.job import RESPONSES_ENDPOINT, GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.kinds.questions import Question
from protocol.errors import ErrorCode
from protocol.version import ProtocolVersion
from protocol.wire.messages import EngineOffer, Prepared

_SUMMARY_PROMPT_TOKENS: Final = 128
"""What asks for a summary behind the items, at most."""


class Compactor:
    """Watches over the prompts of one response; each is counted by a request of its own.

    Args:
        requests: Makes them.
        caller: Who asks.
        request_id: Of the response; those of the counts are made of it.
        earlier: What earlier attempts have done.

    Attributes:
        may_begin: Whether one may come before the next turn; what is still too long after it, is.
        is_continued: Whether the response has begun, so that a drain lets it finish.
    """

    def __init__(
        self, requests: RequestFactory, caller: Caller, request_id: str, earlier: Earlier
    ) -> None:
        self._gives_up = earlier.has_blank_summary
        self.may_begin = not (earlier.is_summed_up or self._gives_up)
        self.is_continued = False
        self._requests = requests
        self._caller = caller
        self._request_id = request_id
        self._num_asked = 0

    async def is_due(self, plan: HostedPlan, job: GenerationJob, model: str) -> bool:
        """Whether a turn's prompt has so many tokens that its beginning is summed up.

        Args:
            plan: Of the turn.
            job: Likewise.
            model: Who answers it, whose tokens and context count.

        Raises:
            GatewayError: They can't be counted.
        """
        if plan.compact_threshold is None or not (plan.can_compact and self.may_begin):
            return False
        self._num_asked += 1
        question = Question(
            # Whoever may have the response made may have it counted.
            endpoint=RESPONSES_ENDPOINT,
            model=model,
            message=bridge.counted(job.prepares[0]),
            answer_kind=Prepared,
            check=_every_engine_counts,
        )
        request, work = self._requests.question(
            question,
            self._caller,
            f"{self._request_id}c{self._num_asked}",
            is_continued=self.is_continued,
        )
        try:
            await request.start()
        finally:
            request.end("aborted")
            request.release()
        threshold = plan.compact_threshold
        if threshold == BY_CONTEXT:
            context = 0 if work.offer is None else work.offer.max_model_len
            threshold = threshold_of(context, plan.max_output_tokens)
        return len(work.answer.prompt_token_ids) > threshold

    async def summary(self, work: GenerationWork) -> AsyncIterator[str]:
        """The pieces of what a turn says which sums something up; none of what is blank.

        Raises:
            GatewayError: It failed.
        """
        is_blank = True
        while (found := await work.next_events(None)) is not None:
            for event in found:
                if not isinstance(event, ContentText):
                    continue
                text = event.text.lstrip() if is_blank else event.text
                is_blank &= not text
                if text:
                    yield text
        self.may_begin = False
        self._gives_up |= is_blank

    def answered(self) -> None:
        """A turn that answers is over, and what it has said may be summed up."""
        self.may_begin = not self._gives_up

    def give_up(self, error: GatewayError) -> None:
        """What would be summed up doesn't fit the context; the turn without a summary may.

        Raises:
            GatewayError: The given one: it is another one.
        """
        if error.code is not ErrorCode.CONTEXT_LENGTH_EXCEEDED:
            raise error
        self._gives_up, self.may_begin = True, False


def threshold_of(max_model_len: int, max_output_tokens: int | None) -> int:
    """Tokens of a prompt that are many where no request says how many are.

    Three quarters of the context, or fewer, so that the answer has the room that was asked for and
    the summary has its own: it is made of nearly the same prompt. But a quarter at least.

    Args:
        max_model_len: Prompt and output together, tokens.
        max_output_tokens: Of the answer; None where the request doesn't bound it.
    """
    room = max(MAX_SUMMARY_TOKENS + _SUMMARY_PROMPT_TOKENS, max_output_tokens or 0)
    return max(max_model_len // 4, min(max_model_len * 3 // 4, max_model_len - room))


def _every_engine_counts(_offer: EngineOffer, _version: ProtocolVersion) -> None:
    pass
