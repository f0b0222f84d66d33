"""/tokenize, /detokenize and /tokenizer_info in the shapes of vLLM: texts as a model reads them."""

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import (
    ClientDisconnectedError,
    ModelNotFoundError,
    UnsupportedFieldError,
)
from gateway.http.access.guard import GuardedRoute, caller_of, parsed_body
from gateway.http.answers.answer_headers import answer_headers, ignored_headers
from gateway.http.answers.answering import only_model
from gateway.http.answers.responses import json_answer, run_to_end
from gateway.http.bodies.parsers import DETOKENIZE, TOKENIZE
from gateway.http.parts import HttpParts, parts_of
from gateway.http.routes.server.models import visible_models
from gateway.http.schemas.base.body import body_schema
from gateway.http.schemas.inference.tokenize import DetokenizeRequest, TokenizeRequest
from gateway.request.jobs.model_limits import (
    check_extras,
    check_template,
    check_token_ids,
    check_version,
)
from gateway.request.kinds.questions import Question
from protocol.version import ProtocolVersion
from protocol.wire.messages import Detokenized, EngineOffer, Prepared

router = APIRouter(route_class=GuardedRoute, tags=["tokens"])

_TOKENIZE = "/tokenize"
_DETOKENIZE = "/detokenize"
_INFO = "/tokenizer_info"


@router.post(_TOKENIZE, openapi_extra=body_schema(TokenizeRequest))
async def tokenize(http_request: HttpRequest) -> Response:
    """The tokens of a text, or of a conversation with the model's template."""
    parts, caller = parts_of(http_request), caller_of(http_request)
    body = await parsed_body(http_request, TOKENIZE)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)

    def check(offer: EngineOffer, version: ProtocolVersion) -> None:
        is_allowed = parts.settings.request_chat_templates
        check_template(body.message, is_allowed=is_allowed)
        check_extras(body.message, offer, version)
        if body.returns_strings:
            check_version(version, "return_token_strs")

    request, work = parts.requests.question(
        Question(
            endpoint=_TOKENIZE,
            model=_model(parts, body.model),
            message=body.message,
            answer_kind=Prepared,
            check=check,
        ),
        caller,
        http_request.state.request_id,
    )
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    prepared = work.answer
    answer = {
        "count": len(prepared.prompt_token_ids),
        "max_model_len": 0 if work.offer is None else work.offer.max_model_len,
        "tokens": prepared.prompt_token_ids,
        "token_strs": prepared.tokens if body.returns_strings else None,
    }
    return json_answer(
        answer, headers | answer_headers(request.lease, model=work.model, asked=body.model)
    )


@router.post(_DETOKENIZE, openapi_extra=body_schema(DetokenizeRequest))
async def detokenize(http_request: HttpRequest) -> Response:
    """The text of tokens."""
    parts, caller = parts_of(http_request), caller_of(http_request)
    body = await parsed_body(http_request, DETOKENIZE)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)

    def check(offer: EngineOffer, version: ProtocolVersion) -> None:
        check_version(version, "tokens")
        check_token_ids("tokens", body.message.token_ids, offer.vocab_size)

    request, work = parts.requests.question(
        Question(
            endpoint=_DETOKENIZE,
            model=_model(parts, body.model),
            message=body.message,
            answer_kind=Detokenized,
            check=check,
        ),
        caller,
        http_request.state.request_id,
    )
    try:
        await run_to_end(http_request, request)
    except ClientDisconnectedError:
        return Response(status_code=499)
    answer = {"prompt": work.answer.text}
    return json_answer(
        answer, headers | answer_headers(request.lease, model=work.model, asked=body.model)
    )


@router.get(
    _INFO,
    openapi_extra={
        "parameters": [
            {
                "name": "model",
                "in": "query",
                "required": False,
                "description": "Needed when several are served.",
                "schema": {"type": "string"},
            }
        ]
    },
)
async def tokenizer_info(http_request: HttpRequest) -> Response:
    """The special tokens, the chat template and the class of a model's tokenizer."""
    seen, name = visible_models(http_request), http_request.query_params.get("model")
    if name is None:
        model = only_model(parts_of(http_request))
        name = model
    else:
        model = parts_of(http_request).names.offered(name).model
    if name not in seen and model not in seen:
        raise ModelNotFoundError(name, tuple(sorted(seen)))
    info = seen[name if name in seen else model].tokenizer_info_json
    if not info:
        raise UnsupportedFieldError(
            f"The engines of the model `{model}` tell nothing of their tokenizer; they are of an"
            " earlier release.",
            param="model",
        )
    return Response(info, media_type="application/json")


def _model(parts: HttpParts, name: str | None) -> str:
    """The name of the model that is meant: of the only one, when the request names none."""
    if name is None:
        return only_model(parts)
    parts.names.offered(name)  # nobody's is not found
    return name
