"""POST /v1/responses and /v1/responses/input_tokens: OpenAI's newer API, without its store."""

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import ClientDisconnectedError, ModelNotFoundError
from gateway.http.access import GuardedRoute, caller_of, parsed_body
from gateway.http.answering import answer
from gateway.http.error_table import limit_headers
from gateway.http.ignored_fields import ignored_headers
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
from gateway.http.responses import run_to_end
from gateway.request.generation import GenerationWork
from gateway.request.job import RESPONSES_ENDPOINT
from gateway.request.questions import Question
from gateway.request.request import Request
from protocol.version import ProtocolVersion
from protocol.wire.messages import EngineOffer, LimitState, Prepared

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
    parts, caller = parts_of(http_request), caller_of(http_request)
    body = await parsed_body(http_request, INPUT_TOKENS)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    models = parts.directory.models()
    if body.model is None or body.model not in models:
        raise ModelNotFoundError(body.model or "", tuple(sorted(models)))
    request, work = parts.requests.question(
        Question(
            endpoint=_COUNT,
            model=body.model,
            message=body.message,
            answer_kind=Prepared,
            check=_nothing_more,
        ),
        caller,
        http_request.state.request_id,
    )
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    counted = {
        "object": "response.input_tokens",
        "input_tokens": len(work.answer.prompt_token_ids),
    }
    headers |= limit_headers(request.limits)
    return Response(orjson.dumps(counted), headers=headers, media_type="application/json")


def _nothing_more(_offer: EngineOffer, _version: ProtocolVersion) -> None:
    """Every engine counts."""
