"""POST /v1/chat/completions and /v1/completions."""

import time
from functools import partial
from typing import Final

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.http.access.guard import GuardedRoute, parsed_body
from gateway.http.answers.answer_headers import warning_objects
from gateway.http.answers.answering import UnstoredShape, answer
from gateway.http.bodies.parsers import CHAT, COMPLETION
from gateway.http.render.answer import AnswerCollector, ChatCollector, CompletionCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.stream import (
    ChatStreamRenderer,
    CompletionStreamRenderer,
    StreamRenderer,
)
from gateway.http.schemas.base.body import body_schema
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.inference.completion import CompletionRequest
from gateway.request.jobs.job import CHAT_ENDPOINT, COMPLETION_ENDPOINT
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from protocol.wire.messages import Usage

router = APIRouter(route_class=GuardedRoute)


@router.post(CHAT_ENDPOINT, tags=["generation"], openapi_extra=body_schema(ChatRequest))
async def chat_completions(request: HttpRequest) -> Response:
    """Go on with a conversation."""
    body = await parsed_body(request, CHAT)
    return await answer(request, body, _SHAPE)


@router.post(COMPLETION_ENDPOINT, tags=["generation"], openapi_extra=body_schema(CompletionRequest))
async def completions(request: HttpRequest) -> Response:
    """Go on with a text."""
    body = await parsed_body(request, COMPLETION)
    return await answer(request, body, _SHAPE)


class _OpenAIShape(UnstoredShape):
    """Answers of chats and completions."""

    def collector(self, request: Request, work: GenerationWork) -> AnswerCollector:
        """For a whole answer."""
        kind = ChatCollector if work.job.endpoint == CHAT_ENDPOINT else CompletionCollector
        return kind(self._head(request, work), work.job.num_choices_in_all, work.job.options)

    def renderer(self, request: Request, work: GenerationWork) -> StreamRenderer:
        """For a stream."""
        is_chat = work.job.endpoint == CHAT_ENDPOINT
        kind = ChatStreamRenderer if is_chat else CompletionStreamRenderer
        return kind(self._head(request, work), work.job.options)

    def _head(self, request: Request, work: GenerationWork) -> AnswerHead:
        offer = work.offer
        prefix = "chatcmpl" if work.job.endpoint == CHAT_ENDPOINT else "cmpl"
        return AnswerHead(
            id=f"{prefix}-{request.request_id}",
            created=int(time.time()),
            model=work.model,
            system_fingerprint=f"fp_{'' if offer is None else offer.fingerprint[:12]}",
            budget_warnings=(
                warning_objects(request.lease.warnings)
                if work.job.options.shows_budget_warnings
                else None
            ),
            timings=partial(_timings, request) if work.job.options.shows_timings else None,
        )


_SHAPE: Final = _OpenAIShape()


def _timings(request: Request, usage: Usage) -> dict[str, float | None]:
    """Seconds from the request's arrival, and output tokens a second of the whole time."""
    elapsed_s, first_output_s = request.elapsed_s, request.first_output_s
    return {
        "first_token_time": None if first_output_s is None else round(first_output_s, 6),
        "processing_time": round(elapsed_s, 6),
        "tokens_per_second": round(usage.completion_tokens / max(elapsed_s, 1e-9), 3),
    }
