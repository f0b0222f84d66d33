"""POST /v1/responses and /v1/responses/input_tokens: OpenAI's newer API, without its store."""

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import ClientDisconnectedError
from gateway.http.access import GuardedRoute, parsed_body
from gateway.http.answering import answer, count_tokens
from gateway.http.error_table import limit_headers
from gateway.http.openresponses.convert import ResponsesBody
from gateway.http.openresponses.items import ItemMaker
from gateway.http.openresponses.render import (
    ResponseCollector,
    ResponseHead,
    ResponseStreamRenderer,
)
from gateway.http.openresponses.schemas import InputTokensRequest, ResponsesRequest
from gateway.http.parsers import INPUT_TOKENS, RESPONSES
from gateway.http.parts import HttpParts, parts_of
from gateway.request.generation import GenerationWork
from gateway.request.job import RESPONSES_ENDPOINT
from gateway.request.request import Request
from protocol.wire.messages import LimitState

router = APIRouter(route_class=GuardedRoute, tags=["responses"])

_COUNT = f"{RESPONSES_ENDPOINT}/input_tokens"


def _schema(model: type[InputTokensRequest]) -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


class _ResponseShape:
    """Answers of Responses.

    Args:
        parts: Of the gateway.
        body: Of the request.
    """

    def __init__(self, parts: HttpParts, body: ResponsesBody) -> None:
        self._clock = parts.wall_clock
        self._body = body

    def limit_headers(self, limits: LimitState) -> dict[str, str]:
        """Where the caller stands in its limits."""
        return limit_headers(limits)

    def collector(self, request: Request, work: GenerationWork) -> ResponseCollector:
        """For a whole answer."""
        return ResponseCollector(self._head(request, work), self._maker(request))

    def renderer(self, request: Request, work: GenerationWork) -> ResponseStreamRenderer:
        """For a stream."""
        return ResponseStreamRenderer(self._head(request, work), self._maker(request))

    def _head(self, request: Request, work: GenerationWork) -> ResponseHead:
        return ResponseHead(
            id=f"resp_{request.request_id}",
            created=int(self._clock()),
            model=work.model,
            echo_json=self._body.echo_json,
            clock=self._clock,
        )

    def _maker(self, request: Request) -> ItemMaker:
        return ItemMaker(
            request.request_id,
            self._body.job.options,
            self._body.spaces,
            seals_reasoning=self._body.seals_reasoning,
        )


@router.post(RESPONSES_ENDPOINT, openapi_extra=_schema(ResponsesRequest))
async def create_response(request: HttpRequest) -> Response:
    """Answer items."""
    body = await parsed_body(request, RESPONSES)
    return await answer(request, body, _ResponseShape(parts_of(request), body))


@router.post(_COUNT, openapi_extra=_schema(InputTokensRequest))
async def count_input_tokens(http_request: HttpRequest) -> Response:
    """The tokens of items, as the model would read them."""
    body = await parsed_body(http_request, INPUT_TOKENS)
    try:
        counted = await count_tokens(http_request, _COUNT, body)
    except ClientDisconnectedError:
        return Response(status_code=499)
    content = orjson.dumps({"object": "response.input_tokens", "input_tokens": counted.number})
    headers = counted.headers | limit_headers(counted.limits)
    return Response(content, headers=headers, media_type="application/json")
