"""POST /tokenize and /detokenize, in the shapes of vLLM: texts as a model reads them, and back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.dispatch.seats import Seat
from gateway.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
)
from gateway.http.access import GuardedRoute, services_of
from gateway.http.convert import tokenize_question
from gateway.http.ignored_fields import ignored_headers
from gateway.http.responses import DisconnectGuard
from gateway.http.schemas.tokenize import (
    DetokenizeRequest,
    TokenizeRequest,
    parse_detokenize_body,
    parse_tokenize_body,
)
from gateway.request.model_limits import check_token_ids, check_version
from gateway.request.services import Services
from protocol.wire.messages import Detokenize

router = APIRouter(route_class=GuardedRoute, tags=["tokens"])


def _schema(name: str) -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/tokenize", openapi_extra=_schema(TokenizeRequest.__name__))
async def tokenize(request: Request) -> Response:
    """The tokens of a text, or of a conversation with the model's template."""
    body, raw, ignored = parse_tokenize_body(await request.body())
    services = services_of(request)
    headers = ignored_headers(ignored, strict=services.settings.strict_fields)
    model = _model(services, body.model)
    question = tokenize_question(
        body,
        raw,
        request_id=request.state.request_id,
        deadline_s=services.settings.request_timeout_s,
    )
    async with _seat(request, model) as seat:
        if body.return_token_strs:
            check_version(seat.engine.peer.protocol_version, "return_token_strs")
        prepared = await services.engines.prepare(seat.engine, question)
        answer = {
            "count": len(prepared.prompt_token_ids),
            "max_model_len": seat.engine.offer.max_model_len,
            "tokens": prepared.prompt_token_ids,
            "token_strs": prepared.tokens if body.return_token_strs else None,
        }
    return _json(answer, headers)


@router.post("/detokenize", openapi_extra=_schema(DetokenizeRequest.__name__))
async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    body, ignored = parse_detokenize_body(await request.body())
    services = services_of(request)
    headers = ignored_headers(ignored, strict=services.settings.strict_fields)
    question = Detokenize(
        request_id=request.state.request_id,
        token_ids=tuple(body.tokens),
        deadline_s=services.settings.request_timeout_s,
    )
    async with _seat(request, _model(services, body.model)) as seat:
        check_version(seat.engine.peer.protocol_version, "tokens")
        check_token_ids("tokens", body.tokens, seat.engine.offer.vocab_size)
        answer = await services.engines.detokenize(seat.engine, question)
    return _json({"prompt": answer.text}, headers)


def _model(services: Services, name: str | None) -> str:
    """The model that is meant: the only one, when the request names none."""
    models = services.engines.models()
    if name is None:
        if len(models) != 1:
            there_are = ", ".join(f"`{one}`" for one in sorted(models)) or "none yet"
            raise InvalidRequestError(
                f"Missing field `model`. Available models: {there_are}.", param="model"
            )
        return next(iter(models))
    if name not in models:
        raise ModelNotFoundError(name, tuple(sorted(models)))
    return name


@asynccontextmanager
async def _seat(request: Request, model: str) -> AsyncIterator[Seat]:
    """A place at an engine for one question, in turn with everybody else's work."""
    services, granted = services_of(request), request.state.granted
    timeout_s = services.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s), DisconnectGuard(request.receive):
            seat = await services.admission.acquire(
                model, tenant=granted.tenant, priority=granted.priority, tokens=0, kind="question"
            )
            try:
                yield seat
            finally:
                services.admission.release(seat)
    except TimeoutError:
        raise DeadlineExceededError(
            f"The request took longer than {timeout_s:g} seconds."
        ) from None


def _json(value: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(orjson.dumps(value), headers=headers, media_type="application/json")
