"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

import time

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import ClientDisconnectedError
from gateway.http.access.guard import GuardedRoute, parsed_body
from gateway.http.answers.answering import UnstoredShape, answer, count_tokens
from gateway.http.anthropic.errors import limit_headers
from gateway.http.anthropic.render import MessageCollector, MessageHead, MessageStreamRenderer
from gateway.http.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.http.bodies.parsers import COUNT_TOKENS, MESSAGES
from gateway.http.schemas.base.body import body_schema
from gateway.request.jobs.job import MESSAGES_ENDPOINT
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from protocol.wire.messages import LimitState

router = APIRouter(route_class=GuardedRoute, tags=["messages"])

_COUNT = f"{MESSAGES_ENDPOINT}/count_tokens"


class _MessageShape(UnstoredShape):
    """Answers of Messages."""

    @staticmethod
    def limit_headers(limits: LimitState) -> dict[str, str]:
        """Where the caller stands in its limits."""
        return limit_headers(limits, time.time())

    def collector(self, request: Request, work: GenerationWork) -> MessageCollector:
        """For a whole answer."""
        return MessageCollector(_head(request, work))

    def renderer(self, request: Request, work: GenerationWork) -> MessageStreamRenderer:
        """For a stream."""
        return MessageStreamRenderer(_head(request, work))


_SHAPE = _MessageShape()


def _head(request: Request, work: GenerationWork) -> MessageHead:
    return MessageHead(
        id=f"msg_{request.request_id}",
        model=work.model,
        request_id=request.trace_id or request.request_id,
        max_model_len=0 if work.offer is None else work.offer.max_model_len,
        max_tokens=work.job.max_tokens,
        shows_thinking=work.job.options.shows_reasoning,
    )


@router.post(MESSAGES_ENDPOINT, openapi_extra=body_schema(MessagesRequest))
async def create_message(request: HttpRequest) -> Response:
    """Go on with a conversation."""
    body = await parsed_body(request, MESSAGES)
    return await answer(request, body, _SHAPE)


@router.post(_COUNT, openapi_extra=body_schema(CountTokensRequest))
async def count_message_tokens(http_request: HttpRequest) -> Response:
    """The tokens of a conversation, as the model would read it."""
    body = await parsed_body(http_request, COUNT_TOKENS)
    try:
        counted = await count_tokens(http_request, _COUNT, body, _SHAPE.limit_headers)
    except ClientDisconnectedError:
        return Response(status_code=499)
    content = orjson.dumps({"input_tokens": counted.number})
    return Response(content, headers=counted.headers, media_type="application/json")
